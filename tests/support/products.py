"""Floating-point operations of convolutions and matrix products, by what they are computed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


class Products(TorchDispatchMode):
    """Counts FLOPs by (kind, dtype): convolution or matrix; bf16, ieee, tf32, …

    float32 is ``tf32`` where torch's switches allow it at that moment: what a GPU would do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        packet = func.overloadpacket
        if packet in flop_registry:
            convolves = packet in _CONVOLUTIONS
            (dtype, *_) = (a.dtype for a in args if isinstance(a, Tensor))
            name = _float32(convolves) if dtype == torch.float32 else str(dtype).split(".")[1]
            flops = flop_registry[packet](*args, **given, out_val=result)
            self.flops["convolution" if convolves else "matrix", name] += flops
        return result

    def share(self, name: str, kind: str | None = None) -> float:
        """Return the share of one way to compute, of all products or of one kind."""
        found = {key: value for key, value in self.flops.items() if kind in {None, key[0]}}
        return sum(v for key, v in found.items() if key[1] == name) / sum(found.values())


def _float32(convolves: bool) -> str:
    allowed = torch.backends.cudnn if convolves else torch.backends.cuda.matmul
    return "tf32" if allowed.allow_tf32 else "ieee"


def products_of(step: Callable[[], object]) -> Products:
    """Run a step and count its products."""
    counted = Products()
    with counted:
        step()
    return counted
