"""Adam's fused kernel on a CPU, with the same bits for a number wherever its tensor lies.

torch's kernel takes a quarter of the time of Adam written in single operations, as it reads
everything once. But it computes the last numbers of a tensor, which fill no vector register, by
other instructions, which round otherwise: ZeRO, which joins tensors, would differ from DDP in
bits. Here those last numbers are moved to a register's width of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

_WHOLE = 64  # numbers: a multiple of all vector registers, and of what the kernel gives a thread


class VectorAdam(torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` of float32 parameters on a CPU; see the module's text."""

    def __init__(
        self,
        parameters: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, fused=True)
        self._step_supports_amp_scaling = False  # fp16's scale is taken off before, as for others

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            pieces = _Pieces()
            for parameter in group["params"]:
                if parameter.grad is not None:
                    pieces.add(parameter, self._moments(parameter))
            parameters, gradients, first, second = pieces.tensors
            beta1, beta2 = group["betas"]
            adam(
                parameters,
                gradients,
                first,
                second,
                [],
                pieces.steps,
                foreach=False,
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
            pieces.put_back()
        return loss

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class _Pieces:
    """Parameters, gradients and moments as vectors of whole registers.

    Attributes:
        tensors: parameters, gradients, first and second moments, in four lists.
        steps: a count for each piece, float32 ().
    """

    def __init__(self) -> None:
        self.tensors: tuple[list[Tensor], ...] = ([], [], [], [])
        self.steps: list[Tensor] = []
        self._rests: list[tuple[Tensor, Tensor]] = []

    def add(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Add a parameter with its gradient and moments."""
        gradient = parameter.grad
        assert gradient is not None
        flat = [
            _as_vector(tensor, parameter)
            for tensor in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
        ]
        whole = parameter.numel() - parameter.numel() % _WHOLE
        rest = parameter.numel() - whole
        if rest:
            # Each piece counts the step: only one of them by the parameter's own count.
            step = state["step"].clone() if whole else state["step"]
            self._append([_padded(vector[whole:]) for vector in flat], step)
            for kept, vector in enumerate(flat):
                if kept != 1:  # all but the gradient are updated
                    self._rests.append((vector[whole:], self.tensors[kept][-1]))
        if whole:
            self._append([vector[:whole] for vector in flat], state["step"])

    def _append(self, vectors: list[Tensor], step: Tensor) -> None:
        for kept, vector in zip(self.tensors, vectors, strict=True):
            kept.append(vector)
        self.steps.append(step)

    def put_back(self) -> None:
        """Write the updated last numbers where they came from."""
        for rest, padded in self._rests:
            rest.copy_(padded[: len(rest)])


def _as_vector(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor's numbers in the order of `like` in memory; a view where its own is that."""
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like).copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,))


def _padded(vector: Tensor) -> Tensor:
    padded = vector.new_zeros(_WHOLE)
    padded[: len(vector)] = vector
    return padded
