"""Phases and networks that torch compiles, and the proof that they compute what eager ones do.

A phase is compiled whole: the networks that its loss enters, the loss, and a gradient penalty with
its first derivative inside, so that the backward of the compiled phase is all that is left to
differentiate. A compiled *network* could not be differentiated twice. Its first call in a session
computes the loss and its gradients both ways, on the same batch, with the same random numbers, and
puts back what that moved; a phase that differs is refused, since torch can compile a function
wrongly without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.systems.base import (
    Loss,
    Losses,
    Phase,
    PreparedLoss,
    SplitLoss,
    System,
    total,
    trainable,
)
from t2i_hpc.systems.encoders import without_gradient
from t2i_hpc.training.checks import choose_compiled
from t2i_hpc.training.world import World, raise_together

_LOG = logging.getLogger("t2i_hpc")
# Compiled backends keep more digits in half precision than eager kernels, which round each result.
BOUNDS = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 0.1, "fp16": 0.1}
_ROUNDINGS = 10
_SMALL = 0.01  # of a network's gradient: smaller gradients are measured by this much of it
_TINY = 1e-30
_EXPLANATION = "Explanation:"
_BACKEND = "inductor"


def compile_chosen(
    system: System, names: Sequence[str], world: World, precision: str
) -> list[Phase]:
    """Compile networks in place; return the system's phases, the chosen ones with compiled losses.

    Args:
        system: its modules on the world's device.
        names: of networks and phases, or ``all``.
        world: this rank's place.
        precision: a key of BOUNDS.
    """
    networks, chosen = choose_compiled(system, names)
    for name in networks:
        system.modules[name].compile()
    made = partial(CompiledLoss, system=system, world=world, precision=precision)
    return [_with_losses(phase, made) if phase.name in chosen else phase for phase in system.phases]


def _with_losses(phase: Phase, made: Callable[[Phase, Loss], Loss]) -> Phase:
    def compiled(loss: Loss) -> Loss:
        if isinstance(loss, SplitLoss):  # only what is entered is traced and proven
            return SplitLoss(made(phase, loss.whole), tuple(made(phase, p) for p in loss.parts))
        if isinstance(loss, PreparedLoss):
            return replace(loss, loss=made(phase, loss.loss))
        return made(phase, loss)

    between = None if phase.between is None else compiled(phase.between)
    return replace(phase, loss=compiled(phase.loss), between=between)


class CompiledLoss:
    """A loss of a phase, compiled whole; its first call proves it.

    Args:
        phase: what it is a loss of.
        loss: its own, or the one between.
        system: whose phase it is.
        world: the ranks, which refuse together.
        precision: a key of BOUNDS.
    """

    def __init__(
        self, phase: Phase, loss: Loss, system: System, world: World, precision: str
    ) -> None:
        self.phase, self.eager = phase, loss
        self._system, self._world = system, world
        self._precision = precision
        self._updated = {
            f"{name}.{key}": parameter
            for name in phase.updates
            for key, parameter in trainable(system.trainable[name])
        }
        own = {id(parameter) for parameter in self._updated.values()}
        self._others = [
            p for p in system.modules.parameters() if p.requires_grad and id(p) not in own
        ]
        # Inductor would draw other random numbers than every other rank and strategy does.
        options: dict[str, Any] | None = (
            {"fallback_random": True} if _BACKEND == "inductor" else None
        )
        self._compiled: Loss = torch.compile(
            loss, fullgraph=True, dynamic=False, backend=_BACKEND, options=options
        )
        self._proven = False

    def __call__(self, context: Any) -> Losses:
        """Return the terms of the loss.

        Raises:
            ConfigurationError: in the first call; torch cannot compile it, or it differs.
        """
        if not self._proven:
            self._prove(context)
            self._proven = True
        return self._compute(context)

    def _compute(self, context: Any) -> Losses:
        # Parameters of other networks would be inputs that need a gradient, and their backward
        # would wake the averaging of theirs. As in eager execution, a backward knows no autocast.
        with without_gradient(self._others), _eager_autocast():
            return self._compiled(context)

    def _prove(self, context: Any) -> None:
        self._world.set_stage(f"compiling the phase {self.phase.name}")
        eager, error = self._measure(self._run_eagerly, context), None
        version = f"torch {torch.__version__}"
        try:
            compiled = self._measure(self._compute, context)
        except Exception as reason:
            if not isinstance(reason, _dynamo_errors()):
                raise
            error = self._refusal(f"cannot be compiled whole by {version}: {_brief(reason)}")
        else:
            worst = self._compare(eager, compiled, context)
            _LOG.info("the phase %s is compiled; %s", self.phase.name, worst)
            if worst.value > worst.allowed:
                error = self._refusal(f"is compiled wrongly by {version}: {worst}")
        raise_together(self._world, error)

    def _compare(self, eager: Measured, compiled: Measured, context: Any) -> Difference:
        """Return the difference that is largest by what is allowed for it."""
        bound = BOUNDS[self._precision]
        found = differences(eager, compiled)
        allowed = dict.fromkeys(found, bound)
        if max(found.values()) > bound:
            # DAMSM sharpens: one rounding of the images may move a gradient by 1e-3.
            moved = self._measure(self._run_eagerly, context, rounded=True)
            by_rounding = differences(eager, moved).items()
            allowed = {name: max(bound, _ROUNDINGS * value) for name, value in by_rounding}
        name = max(found, key=lambda name: found[name] / allowed[name])
        return Difference(name, found[name], allowed[name], self._precision)

    def _refusal(self, what: str) -> ConfigurationError:
        others = ",".join(p.name for p in self._system.phases if p.name != self.phase.name)
        ways = [f"engine.compile=[{others}]" if others else "", "engine.compile=[]"]
        return ConfigurationError(
            f"the phase {self.phase.name} {what}; go on with {' or '.join(filter(None, ways))}"
        )

    def _run_eagerly(self, context: Any) -> Losses:
        # Networks that are compiled themselves are eager too.
        with without_gradient(self._others), torch.compiler.set_stance("force_eager"):
            return self.eager(context)

    def _measure(self, way: Loss, context: Any, rounded: bool = False) -> Measured:
        """Compute losses and gradients, and restore running statistics and random numbers."""
        device = self._world.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            copy = _Copy(rounded)
            inputs = copy.of(context)
        kept = {name: value.clone() for name, value in self._system.modules.named_buffers()}
        with torch.random.fork_rng(devices):
            losses = way(inputs)
            wanted = [*self._updated.values(), *copy.leaves]
            gradients = torch.autograd.grad(total(losses), wanted, allow_unused=True)
        for name, value in self._system.modules.named_buffers():
            # Not counted as a change: the graph of the generator, which has run, may need it.
            value.data.copy_(kept[name])
        names = [*self._updated, *(f"input {number}" for number in range(len(copy.leaves)))]
        return Measured(
            {name: term.value.detach() for name, term in losses.items()},
            {
                name: torch.zeros_like(one) if gradient is None else gradient
                for name, one, gradient in zip(names, wanted, gradients, strict=True)
            },
        )


@dataclass(frozen=True)
class Measured:
    """Terms of a loss, and gradients by parameter (``network.parameter``) and by input."""

    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """Between a compiled and an eager phase: where, how much, and how much is allowed."""

    where: str
    value: float
    allowed: float
    precision: str

    def __str__(self) -> str:
        return (
            f"its {self.where} differs from the eager one by {self.value:.1e}, where "
            f"{self.allowed:.1e} is allowed in {self.precision}"
        )


def differences(expected: Measured, found: Measured) -> dict[str, float]:
    """Return relative differences by name.

    A term's is relative to it, or to 1 where that is more; a gradient's, by their norms, to its
    own or to a hundredth of its network's, below which it is mostly rounding.
    """
    apart = {
        f"loss {name}": (found.terms[name] - term).abs() / term.abs().clamp(min=1)
        for name, term in expected.terms.items()
    }
    by_network: dict[str, list[str]] = {}
    for name in expected.gradients:
        by_network.setdefault(name.partition(".")[0], []).append(name)
    for names in by_network.values():
        theirs = [expected.gradients[name].double() for name in names]
        ours = [found.gradients[name].double() for name in names]
        sizes = torch.stack(torch._foreach_norm(theirs))
        lengths = torch.stack(torch._foreach_norm(torch._foreach_sub(ours, theirs)))
        relative = lengths / sizes.clamp(min=_SMALL * float(sizes.norm()) or _TINY)
        # What eager execution itself overflows in is no measure; training finds it.
        relative = relative.where(sizes.isfinite(), 0)
        apart |= {f"gradient of {name}": one for name, one in zip(names, relative, strict=True)}
    values = torch.stack([value.double() for value in apart.values()])
    # NaN is the largest of all.
    return dict(zip(apart, values.nan_to_num(torch.inf, torch.inf).tolist(), strict=True))


class _Copy:
    """Copies of what phases share, whose gradients stop there.

    Args:
        rounded: move each number by one rounding, up or down.

    Attributes:
        leaves: stand for the tensors that have a graph.
    """

    def __init__(self, rounded: bool = False) -> None:
        self._rounded = rounded
        self.leaves: list[Tensor] = []
        self._made: dict[int, Tensor] = {}

    def of(self, value: Any) -> Any:
        """Return a copy: dataclasses, tuples, lists and mappings of tensors and anything else."""
        if isinstance(value, Tensor):
            return self._of_tensor(value) if value.is_floating_point() else value
        if is_dataclass(value) and not isinstance(value, type):
            return replace(
                value, **{f.name: self.of(getattr(value, f.name)) for f in fields(value)}
            )
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.of, value))
        if isinstance(value, tuple | list):
            return type(value)(map(self.of, value))
        if isinstance(value, dict):
            return {key: self.of(one) for key, one in value.items()}
        return value

    def _of_tensor(self, value: Tensor) -> Tensor:
        if id(value) in self._made:  # a tensor that is there twice stays one
            return self._made[id(value)]
        copy = value.detach()
        if self._rounded:
            signs = torch.randint_like(copy, 2).mul_(2).sub_(1)
            copy = copy.addcmul(copy, signs, value=torch.finfo(copy.dtype).eps / 2)
        if value.requires_grad:
            self.leaves.append(copy.requires_grad_())
            # No leaf and of the same strides, as in training: or it would be compiled anew.
            copy = torch.empty_strided(
                copy.shape, copy.stride(), dtype=copy.dtype, device=copy.device
            ).copy_(copy)
        self._made[id(value)] = copy
        return copy


def _eager_autocast() -> AbstractContextManager[None]:
    """Let what is compiled inside differentiate without autocast, as eager execution does."""
    import torch._functorch.config as settings

    patched: AbstractContextManager[None] = settings.patch(backward_pass_autocast="off")
    return patched


def _dynamo_errors() -> tuple[type[Exception], ...]:
    """Return the errors by which torch says that it cannot compile."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)


def _brief(error: Exception) -> str:
    """Return the line of a long error that explains it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    explained = [line for line in lines if line.startswith(_EXPLANATION)]
    return (explained or lines)[0].removeprefix(_EXPLANATION).strip().rstrip(".")
