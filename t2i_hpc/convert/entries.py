"""The tensors of a network, each under the reference's name and under ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from t2i_hpc.convert.layouts import Layout
from t2i_hpc.convert.shapes import ConversionError, count_blocks

_COUNTER = "num_batches_tracked"
_SHOWN = 6

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the reference, its name in ours (None: dead there), its shape."""

    theirs: str
    ours: str | None
    shape: tuple[int, ...]


def entries(layout: Layout, module: nn.Module) -> Iterator[Entry]:
    """Yield the entries of a module in the order of the reference."""
    own = module.state_dict()
    for theirs, ours in layout.pairs(count_blocks(own, "blocks.")):
        found = _inside(ours, own)
        for name in found:
            yield Entry(theirs + name.removeprefix(ours), name, tuple(own[name].shape))
        if not found and layout.dead and theirs.endswith(layout.dead):
            channels = len(own[ours.rpartition(".")[0] + ".conv1.weight"])
            yield Entry(f"{theirs}.weight", None, (channels, channels, 1, 1))
            yield Entry(f"{theirs}.bias", None, (channels,))


def reference_sizes(layout: Layout, own: Mapping[str, Tensor]) -> Sizes:
    """Return the shapes of tensors with our names, under the reference's names."""
    return {
        theirs + name.removeprefix(ours): tuple(own[name].shape)
        for theirs, ours in layout.pairs(count_blocks(own, "blocks."))
        for name in _inside(ours, own)
    }


def sizes(tensors: Mapping[str, Tensor]) -> Sizes:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_sizes(title: str, given: Sizes, expected: Sizes) -> None:
    """Compare names and shapes; counters of batches may be missing.

    Raises:
        ConversionError: names the tensors that are missing, unexpected or of another shape.
    """
    missing = [n for n in expected if n not in given and not n.endswith(_COUNTER)]
    unexpected = [name for name in given if name not in expected]
    other = [
        f"{name} {given[name]} instead of {expected[name]}"
        for name in expected
        if name in given and given[name] != expected[name]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    problems = [f"{len(found)} {kind}: {_some(found)}" for kind, found in kinds if found]
    if problems:
        raise ConversionError(
            f"{title}: the tensors do not fit ({'; '.join(problems)}); is this checkpoint "
            "whole, and of this system and part?"
        )


def _inside(ours: str, own: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if name == ours or name.startswith(ours + ".")]


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
