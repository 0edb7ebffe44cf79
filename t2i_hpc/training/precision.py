"""Compute dtype of convolutions and matrix products, and NaN or Inf found without a sync.

- ``auto``: tf32 on GPUs that have it, fp32 elsewhere.
- ``fp32``: float32 by IEEE throughout. ``tf32``: the same on the CPU; on a GPU products are
  rounded to 19 bits, as its tensor cores take them.
- ``bf16``: products in bfloat16 over float32 weights, by autocast.
- ``fp16``: products in float16 likewise; losses are scaled up so that small gradients survive,
  and an update whose gradients overflow is skipped while the scale comes down. That is how
  float16 works and no fault.

With bf16 and fp16 some products stay float32 (DAMSM's scores, whose softmax over tokens sharpens
differences): these are rounded as tf32, so that no product runs in IEEE float32, which takes 4 to
8 times as long. A phase may ask for another float32 (:attr:`Phase.float32`).

Over the first five steps of a small SSA-GAN on a CPU the losses of bf16 and fp16 stay within 0.01
of fp32's, relative to max(1, loss) (0.003 was measured). DAMSM, whose softmax over regions and
tokens sharpens differences, stays within 0.15 (0.07), and then the other losses within 0.05 (0.02).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_hpc.config.engine import EngineConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GRADIENT = "gradient of "
_UNWATCHED = "scaled gradient of "
_FIRST_WITH_TF32 = 8  # compute capability: Ampere


class Precision:
    """What a name of precision means on a device.

    It settles torch's own switches for the whole process: TF32, and for a GPU whether cuDNN times
    its algorithms at each new shape (shapes are few) or takes deterministic ones.

    Attributes:
        name: what is computed in; never ``auto``.
    """

    def __init__(self, name: str, device: torch.device, deterministic: bool = False) -> None:
        self.name, self._device = resolve(name, device), device
        self._tf32 = self.name != "fp32"
        _allow_tf32(self._tf32)
        if device.type == "cuda":
            _settle_algorithms(deterministic)

    def autocast(self) -> torch.autocast:
        """Return the context in which losses are computed."""
        kind = _AUTOCAST.get(self.name)
        return torch.autocast(
            self._device.type, kind or torch.bfloat16, enabled=kind is not None, cache_enabled=False
        )

    @contextmanager
    def float32(self, kind: str | None) -> Iterator[None]:
        """Compute products that stay float32 as ``fp32`` or ``tf32``; None: as everywhere."""
        wanted = self._tf32 if kind is None else kind == "tf32"
        if wanted == self._tf32:
            yield
            return
        _allow_tf32(wanted)
        try:
            yield
        finally:
            _allow_tf32(self._tf32)

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return a new scaler of losses, None where none is needed."""
        return torch.amp.GradScaler(self._device.type) if self.name == "fp16" else None


def resolve(name: str, device: torch.device) -> str:
    """Return the precision that a name stands for on a device; ``auto`` asks what it is."""
    if name != "auto":
        return name
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return "fp32"  # of a pretended GPU, too, nothing is known
    return "tf32" if torch.cuda.get_device_capability(device)[0] >= _FIRST_WITH_TF32 else "fp32"


def describe_arithmetic(config: EngineConfig, device: torch.device) -> str:
    """Return in words what a training computes in, for people."""
    words = resolve(config.precision, device)
    if config.precision == "auto" and words != "fp32":
        words += " by engine.precision=auto"
    return f"{words}, deterministic" if config.deterministic else words


def _allow_tf32(allowed: bool) -> None:
    # The names of torch before 2.9, which later ones know as well; mixed with the new ones,
    # cudnn.conv.fp32_precision and its kin, either kind refuses to be read.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _settle_algorithms(deterministic: bool) -> None:
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(deterministic)


class NonFiniteWatch:
    """Records what a phase produced, and gives the first NaN or Inf one step later.

    Norms are reduced on the device and copied on its stream; the processor reads them one
    step later, when they have long arrived, so it never waits. A run that stops for them names
    phase and tensor. Records are read before a save, so no checkpoint holds a NaN or Inf.
    """

    def __init__(self) -> None:
        self._records: list[_Record] = []

    def record(
        self,
        step: int,
        phase: str,
        losses: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        scale: Tensor | None = None,
    ) -> None:
        """Record a phase's losses (scalars) and gradients, both by name.

        Gradients of a loss that was scaled up by `scale` may overflow: they are not watched.
        """
        sizes = [value.detach().float().abs() for value in losses.values()]
        found = [size.float() for size in norms(list(gradients.values()))]
        sizes += found if scale is None else [size / scale for size in found]
        prefix = _GRADIENT if scale is None else _UNWATCHED
        names = (*(f"loss {name}" for name in losses), *(prefix + n for n in gradients))
        self._records.append(_Record(step, phase, names, *_start_copy(torch.stack(sizes))))

    def pop_first(self, before: float) -> str | None:
        """Name the first NaN or Inf of the steps before `before`, None if there is none.

        What was read is forgotten, up to and with the phase that is named.
        """
        while self._records and self._records[0].step < before:
            record = self._records.pop(0)
            if record.ready is not None:
                record.ready.synchronize()
            finite = zip(record.names, record.values.isfinite().tolist(), strict=True)
            bad = [name for name, fine in finite if not fine and not name.startswith(_UNWATCHED)]
            if bad:
                return f"the {bad[0]} in phase {record.phase} of step {record.step}"
        return None

    def gradient_norms(self, step: int) -> dict[str, float]:
        """Return the norm of each module's whole gradient in a step, by ``phase/module``.

        Averaged over the ranks and before any clip; with fp16 without the loss scale, and none
        where that overflowed. Waits for the step: for where the host waits for it anyway.
        """
        squares: dict[str, float] = {}
        for record in (each for each in self._records if each.step == step):
            if record.ready is not None:
                record.ready.synchronize()
            for name, norm in zip(record.names, record.values.tolist(), strict=True):
                if name.startswith((_GRADIENT, _UNWATCHED)):
                    parameter = name.removeprefix(_GRADIENT).removeprefix(_UNWATCHED)
                    key = f"{record.phase}/{parameter.split('.')[0]}"
                    squares[key] = squares.get(key, 0.0) + norm * norm
        return {key: math.sqrt(total) for key, total in squares.items() if math.isfinite(total)}

    def forget_last(self) -> None:
        """Forget the newest phase: what it shows was dealt with."""
        self._records.pop()


@dataclass(frozen=True)
class _Record:
    """The losses and norms of one phase; NaN or Inf where one of its numbers is."""

    step: int
    phase: str
    names: Sequence[str]
    values: Tensor
    ready: torch.cuda.Event | None


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor; NaN or Inf where one of its numbers is.

    Inf also where squares overflow, as they would in Adam's second moment. The largest magnitude
    would do as well, but torch takes 13 times as long for it on a CPU.
    """
    return list(torch._foreach_norm(list(tensors))) if tensors else []


def _start_copy(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying to the CPU; return the copy and the event that it is complete."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event
