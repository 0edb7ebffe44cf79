"""The arithmetic of a training: which numbers products are made of.

- ``fp32``: float32 throughout. ``tf32``: the same on the CPU; on a GPU products are rounded to
  19 bits, as its tensor cores take them.
- ``bf16``: products in bfloat16 over float32 weights, by autocast.
- ``fp16``: products in float16 likewise; losses are scaled up so that small gradients survive,
  and a step whose gradients overflow is left out while the scale comes down. That is how
  float16 works and no fault.

Over the first five steps of a small SSA-GAN on a CPU the losses of bf16 and fp16 stay within 0.01
of fp32's, relative to max(1, loss) (0.003 was measured). DAMSM, whose softmax over regions and
words sharpens differences, stays within 0.15 (0.07), and then the other losses within 0.05 (0.02).

Gradient penalties and DAMSM's scores switch autocast off themselves: a sixth power and a
softmax over words overflow sixteen bits.
"""

from __future__ import annotations

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a name of precision means on a device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self._device = name, device
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        torch.backends.cudnn.allow_tf32 = name == "tf32"

    def autocast(self) -> torch.autocast:
        """Return the context in which losses are computed."""
        kind = _AUTOCAST.get(self.name)
        return torch.autocast(
            self._device.type, kind or torch.bfloat16, enabled=kind is not None, cache_enabled=False
        )

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return a new scaler of losses, None where none is needed."""
        return torch.amp.GradScaler(self._device.type) if self.name == "fp16" else None
