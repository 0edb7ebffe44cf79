"""What a training step asks of a machine: its kernels and collectives, counted, nothing computed.

The step runs on fake tensors: shapes and types go through every operation, numbers do not. So the
step of a full-size system on any batch is counted in seconds, in no memory and without a GPU. A
process group that sends nothing stands for any number of ranks, so what layers exchange (batch
norm's moments, DAMSM's texts) is counted where they exchange it. What DDP exchanges, the gradients
of each phase, follows from the parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.text_encoder import LSTMTextEncoder, TextFeatures
from t2i_hpc.systems.base import Loss, Phase, System, trainable
from t2i_hpc.training.cost import Captions, random_batch
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
SHARED = "shared"  # what phases share: the fakes, the captions' features
_FREE = {
    "detach", "alias", "lift_fresh", "_local_scalar_dense", "_unsafe_view", "device", "empty",
    "empty_like", "new_empty", "empty_strided", "new_empty_strided", "promote_types", "is_pinned",
    "_reshape_alias", "set_data", "item",
}  # fmt: skip
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kernel:
    """One operation on tensors.

    Attributes:
        phase: name of the phase, or ``shared``.
        part: forward, backward or update of the phase.
        arithmetic: type of its products, e.g. ``float32``, ``bfloat16``.
        flops: floating-point operations, a multiplication and an addition each.
        bytes: read and written.
    """

    phase: str
    part: str
    arithmetic: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Collective:
    """One exchange of layers that the rank waits for; `bytes` of the tensor that all then hold."""

    phase: str
    part: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class StepCount:
    """One step of one rank.

    Attributes:
        images: of the rank.
        ranks: that take the step together.
        kernels: how often each runs.
        collectives: of the layers, likewise; none with one rank.
        gradients: bytes that DDP averages, by phase.
        tensors: parameters whose gradients these are, by phase.
    """

    images: int
    ranks: int
    kernels: Mapping[Kernel, int]
    collectives: Mapping[Collective, int]
    gradients: Mapping[str, int]
    tensors: Mapping[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Floating-point operations of all phases."""
        return sum(kernel.flops * times for kernel, times in self.kernels.items())

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write, as if nothing stayed in a cache."""
        return sum(kernel.bytes * times for kernel, times in self.kernels.items())


def count_operations(
    outline: System, engine: EngineConfig, captions: Captions, images: int, ranks: int = 1
) -> StepCount:
    """Count a step; the outline's tensors are replaced by fake ones.

    Args:
        outline: of :func:`t2i_hpc.systems.outline_system`.
        engine: of the training; what only changes how a step is run is left out (compile,
            ZeRO, loss scaling).
        captions: their length and vocabulary.
        images: of a rank.
        ranks: of the training.

    Raises:
        RuntimeError: the step depends on numbers, as a user-defined system's may; or this
            process is one of a group.
    """
    config = replace(
        engine,
        name="ddp",
        device="cpu",
        batch_size=images * ranks,
        compile=[],
        on_nonfinite="stop",
        precision="bf16" if engine.precision in ("bf16", "fp16") else "fp32",
    )
    seen = _Watch()
    # Memory's and speed's implementations of attention are not in torch's table of FLOPs.
    with _pretended_group(ranks), sdpa_kernel(SDPBackend.MATH), fake_tensors(outline):
        strategy = _watched_strategy(outline, config, seen)
        batch = random_batch(images, outline.resolution, captions)
        noise = torch.randn(images, outline.noise_width)
        with seen:
            train_step(strategy, batch, noise)
    averaged = _gradients(outline, config, ranks), _tensors(outline, ranks)
    return StepCount(images, ranks, seen.kernels, seen.collectives, *averaged)


def flops_per_image(outline: System, captions: Captions, images: int) -> float:
    """Return the floating-point operations of a step by its images.

    A phase that runs every k-th step counts a k-th; what recomputation does again does not count.

    Args:
        outline, captions: as :func:`count_operations` takes them.
        images: of a rank; terms that compare images with captions depend on it.
    """
    found = count_operations(outline, EngineConfig(batch_size=images), captions, images)
    every = {phase.name: phase.every for phase in outline.phases}
    counted = [k.flops * times / every.get(k.phase, 1) for k, times in found.kernels.items()]
    return sum(counted) / images


@dataclass
class _Place:
    phase: str = SHARED
    part: str = FORWARD


class _Watch(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = _Place()
        self.kernels = Counter[Kernel]()
        self.collectives = Counter[Collective]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation and count it."""
        given = dict(kwargs or {})
        result = func(*args, **given)
        name, place = func._schema.name.split("::")[1], self.place
        if func.namespace == "c10d":
            size = _bytes(tree_leaves(args[0]))
            self.collectives[Collective(place.phase, place.part, name.strip("_"), size)] += 1
        elif not func.is_view and name not in _FREE:
            count = flop_registry.get(func.overloadpacket)
            flops = int(count(*args, **given, out_val=result)) if count else 0
            # Read and written: what is changed in place stands on both sides.
            read, written = tree_leaves((args, given)), tree_leaves(result)
            size = _bytes(read) + _bytes(written)
            arithmetic = _arithmetic(written or read)
            self.kernels[Kernel(place.phase, place.part, arithmetic, flops, size)] += 1
        return result


def _bytes(leaves: Sequence[Any]) -> int:
    """Return the bytes of tensors, each once; what is expanded is as large as its memory."""
    tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values()
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        for tensor in tensors
    )


def _arithmetic(leaves: Sequence[Any]) -> str:
    kinds = [leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)]
    return str(kinds[0] if kinds else torch.float32).removeprefix("torch.")


def _watched_strategy(system: System, config: EngineConfig, seen: _Watch) -> DDPStrategy:
    """Return a strategy that says where a step is, in :func:`train_step`'s own order."""

    class Watched(DDPStrategy):
        def zero_grad(self, phase: Phase) -> None:
            seen.place = _Place(phase.name, FORWARD)
            super().zero_grad(phase)

        def forward(self, phase: Phase, loss: Loss, context: Any) -> Any:
            seen.place = _Place(phase.name, FORWARD)
            return super().forward(phase, loss, context)

        def backward(self, phase: Phase, loss: Tensor) -> None:
            seen.place = _Place(phase.name, BACKWARD)
            super().backward(phase, loss)

        def clip(self, phase: Phase) -> None:
            seen.place = _Place(phase.name, UPDATE)
            super().clip(phase)

        def end_step(self) -> None:
            seen.place = _Place(SHARED, UPDATE)
            super().end_step()

    return Watched(system, World(0, 1, 0, 1, _CPU), config)


@contextmanager
def fake_tensors(outline: System) -> Iterator[None]:
    """Let every tensor be a fake one, the outline's included."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    # Fake tensors cannot become the data of parameters: they become parameters.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            outline.modules.to_empty(device="cpu")
            for module in outline.modules.modules():
                if isinstance(module, LSTMTextEncoder):
                    vars(module)["forward"] = partial(_encode_unpacked, module)
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _encode_unpacked(encoder: LSTMTextEncoder, tokens: Tensor, lengths: Tensor) -> TextFeatures:
    """Encode captions as if all were of the greatest length: packing depends on the lengths."""
    outputs, (last, _) = encoder.lstm(encoder.dropout(encoder.embedding(tokens)))
    return TextFeatures(outputs.transpose(1, 2), last.transpose(0, 1).flatten(1))


@contextmanager
def _pretended_group(ranks: int) -> Iterator[None]:
    """Be the first of so many ranks, of which the others are not there."""
    if ranks == 1:
        yield
        return
    if dist.is_initialized():
        raise RuntimeError("a step of several ranks is counted outside of a process group")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _gradients(system: System, config: EngineConfig, ranks: int) -> dict[str, int]:
    if ranks == 1:
        return {}
    size = 2 if getattr(config, "gradient_compression", "none") == "bf16" else 4
    numbers = {
        name: sum(parameter.numel() for _, parameter in trainable(module))
        for name, module in system.trainable.items()
    }
    return {phase.name: size * sum(numbers[n] for n in phase.updates) for phase in system.phases}


def _tensors(system: System, ranks: int) -> dict[str, int]:
    if ranks == 1:
        return {}
    numbers = {name: len(trainable(module)) for name, module in system.trainable.items()}
    return {phase.name: sum(numbers[name] for name in phase.updates) for phase in system.phases}
