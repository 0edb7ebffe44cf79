"""Losses and gradients that are no numbers, found without waiting for the device.

What is not finite is noted on the device phase by phase; the processor looks at the notes of
a step one step later, when they have long been made. A run that stops for them names the phase
and the tensor, and the checkpoints hold nothing of it, since notes are read before a save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Note:
    """The largest magnitudes of one phase; not finite where one of its numbers is not."""

    step: int
    phase: str
    names: Sequence[str]
    values: Tensor
    ready: torch.cuda.Event | None


class FiniteWatch:
    """Collects notes of what a phase produced, and gives the first that is not finite."""

    def __init__(self) -> None:
        self._notes: list[_Note] = []

    def note(
        self, step: int, phase: str, losses: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> None:
        """Note a phase's losses (scalars) and gradients, both by name."""
        sizes = [value.detach().float().abs() for value in losses.values()]
        sizes += [size.float() for size in largest(list(gradients.values()))]
        values = torch.stack(sizes)
        names = (*(f"loss {name}" for name in losses), *(f"gradient of {n}" for n in gradients))
        self._notes.append(_Note(step, phase, names, *_on_its_way(values)))

    def first(self, before: float) -> str | None:
        """Say what the first non-finite number of the steps before `before` was, None if none.

        A note is forgotten when it was looked at, not before.
        """
        while self._notes and self._notes[0].step < before:
            note = self._notes.pop(0)
            if note.ready is not None:
                note.ready.synchronize()
            bad = (~note.values.isfinite()).nonzero().flatten().tolist()
            if bad:
                return f"the {note.names[bad[0]]} in phase {note.phase} of step {note.step}"
        return None

    def forget_last(self) -> None:
        """Forget the newest note: what it says was dealt with."""
        self._notes.pop()


def largest(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the largest magnitude of each tensor; not finite where one of its numbers is not."""
    return list(torch._foreach_norm(list(tensors), float("inf"))) if tensors else []


def _on_its_way(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying to the CPU; return the copy and the event that it is complete."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event
