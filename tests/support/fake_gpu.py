"""A GPU that is not there: fake tensors on ``cuda``, on which whatever waits for a device raises.

Forwards and optimizers run on them (torch has no backward for a CUDA device that does not exist).
Besides what torch refuses (reading a value, shapes that depend on values, mixed devices), copies
between host and device raise here unless they are out of pinned memory and need no wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2i_hpc.data.batches import Batch
from t2i_hpc.models import text_encoder

GPU = torch.device("cuda", 0)


class WaitError(AssertionError):
    """Something would have waited for the device."""


class _Copies(TorchDispatchMode):
    """Lets what lies on the host be real, and refuses copies that wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        device = torch.device(kwargs.get("device") or "cpu")
        if tensors and not there and device.type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        pinned = kwargs.pop("pin_memory", False)
        made = func(*args, **kwargs)
        if pinned:
            self.pinned.append(made)
        if func._opname == "_to_copy" and made.device != tensors[0].device:
            self._check(tensors[0], made.device, bool(kwargs.get("non_blocking")))
        if func._opname == "copy_" and tensors[0].device != tensors[1].device:
            source = tensors[0] if tensors[0].device.type == "cpu" else tensors[1]
            self._check(source, GPU, len(args) > 2 and bool(args[2]))
        return made

    def _check(self, on_host: Tensor, device: torch.device, free: bool) -> None:
        """Refuse a copy that waits, or a pageable one."""
        if not free or not any(_same(on_host, one) for one in self.pinned):
            raise WaitError(f"a copy between {on_host.device} and {device} waits for the device")


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Pretend that there is a GPU."""
    copies = _Copies()

    def pin(value: Tensor) -> Tensor:
        copies.pinned.append(value)
        return value

    with (
        patch.object(Tensor, "pin_memory", pin),
        patch.object(text_encoder, "pack_padded_sequence", _pack),
        patch.object(text_encoder, "pad_packed_sequence", _pad),
        patch.object(nn.LSTM, "forward", _recur),
        patch.object(torch.cuda, "Event"),
        patch.object(torch.autograd, "grad", _differentiate),
        FakeTensorMode(allow_non_fake_inputs=True),
        copies,
    ):
        yield


# torch has no fake packing: what it makes has a shape that depends on the lengths.
def _pack(
    values: Tensor, lengths: Tensor, *, batch_first: bool, enforce_sorted: bool = True
) -> Tensor:
    if lengths.device.type != "cpu" or not enforce_sorted:
        raise WaitError("packing asks the device for lengths or their order")
    return values


def _recur(network: nn.LSTM, values: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    rows, steps, _ = values.shape
    state = values.new_empty(2, rows, network.hidden_size)
    return values.new_empty(rows, steps, 2 * network.hidden_size), (state, state)


def _pad(values: Tensor, *, batch_first: bool, total_length: int) -> tuple[Tensor, None]:
    return values, None


def _differentiate(output: Tensor, inputs: Sequence[Tensor], **_: Any) -> tuple[Tensor, ...]:
    """Make up the gradients of a scalar, with a graph as of a second derivative."""
    return tuple(torch.empty_like(value) * output for value in inputs)


def move(modules: nn.Module) -> None:
    """Put a network on the GPU; inside :func:`fake_gpu`."""
    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = torch.empty_like(parameter, device=GPU)
                module._parameters[name] = nn.Parameter(there, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=GPU)


def moved(batch: Batch) -> Batch:
    """Return a batch as training has it: on the GPU what :meth:`Batch.to` takes there."""
    names = ("images", "tokens", "classes")
    there: dict[str, Any] = {
        name: torch.empty_like(getattr(batch, name), device=GPU) for name in names
    }
    return replace(batch, **there)
