"""``engine.profile``: a torch trace of some steps of a session, for Perfetto to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from t2i_hpc.training.phase_clock import PhaseClock
from t2i_hpc.training.progress import RunOutput

_WARM_UP = 10  # steps that a count leaves out: compilation, cuDNN's choices, DDP's buckets


def profiled_steps(setting: Sequence[int]) -> range:
    """Return the steps of a session, the first being 1, that ``engine.profile`` names.

    One number is a count of steps after the first ten; two are the first and the last step.
    """
    if not setting:
        return range(0)
    if len(setting) == 1:
        return range(_WARM_UP + 1, _WARM_UP + 1 + setting[0])
    first, last = setting
    return range(first, last + 1)


class StepProfiler:
    """Traces the steps that are named, and writes them down after the last.

    Args:
        output: where traces go: ``profile/`` of the run directory; and the line that says so.
        steps: of this session.
        clock: gives the parts of a step their names in the trace.
    """

    def __init__(self, output: RunOutput, steps: range, clock: PhaseClock) -> None:
        self._output, self._steps, self._clock = output, steps, clock
        self._done = 0
        self._profile: profile | None = None

    def begin_step(self) -> None:
        """Begin to trace where the next step is the first of them."""
        if self._done + 1 == self._steps.start and self._steps:
            kinds = {ProfilerActivity.CPU}
            if torch.cuda.is_available():
                kinds.add(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds, record_shapes=True)
            self._profile.start()
            self._clock.annotates = True

    def end_step(self, number: int) -> None:
        """Count a step, number `number` of the run; write the trace after the last of them."""
        self._done += 1
        if self._profile is not None and self._done + 1 == self._steps.stop:
            self._write(self._profile, number)
            self._profile = None

    def close(self) -> None:
        """Forget a trace that the session's end cut off."""
        if self._profile is not None:
            self._profile.stop()
            self._output.line.say("the session ended within engine.profile: no trace is written")

    def _write(self, traced: profile, last: int) -> None:
        self._clock.annotates = False
        traced.stop()  # waits for the device
        folder = self._output.folder / "profile"
        folder.mkdir(exist_ok=True)
        path: Path = folder / f"steps-{last - len(self._steps) + 1}-{last}.json.gz"
        traced.export_chrome_trace(str(path))
        self._output.line.say(f"trace of steps {path.stem.removesuffix('.json')[6:]}: {path}")
