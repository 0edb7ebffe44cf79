"""CPU time of SSA-GAN's training step in this build and in another, one step each by turns.

    git worktree add /tmp/earlier COMMIT
    python -m benchmarks.step_by_turns /tmp/earlier      # ten minutes
    python -m benchmarks.step_by_turns /tmp/earlier --width 8 --resolution 64    # seconds

Both builds stay in memory and take their steps one after the other, so what slows the machine for
a while slows both. Each pair's ratio is printed, and last the median. A first step of each, which
fills the memory that is kept, is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent

# What each build runs. It names only what every build since the first benchmark has.
_PROGRAM = """
import sys, time, torch
from benchmarks.batches import Size
from benchmarks.step import build_step
torch.set_num_threads(1)
width, resolution, batch = map(int, sys.argv[1:])
step = build_step("ours", Size(width, resolution, batch))
for _ in sys.stdin:
    start = time.process_time()
    step()
    print(time.process_time() - start, flush=True)
"""
# As training tells glibc in each process (common/process.py).
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
_ROW = "{:>6}{:>10}{:>10}{:>10}\n"


class Build:
    """A process that takes one training step of the build in `folder` whenever it is asked."""

    def __init__(self, folder: Path, size: list[str]) -> None:
        """Start the process; the networks are built while the first step is awaited."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *size],
            cwd=folder,
            env={**os.environ, **_KEEP_FREED_MEMORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> float:
        """Take one step; return its seconds of CPU."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A build ended before its step: its message is above.")
        return float(line)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def compare(now: Build, before: Build, rounds: int) -> float:
    """Print seconds of CPU of a step of each build, `rounds` times; return the median ratio."""
    now.step()
    before.step()
    ratios = []
    for number in range(1, rounds + 1):
        ours, theirs = now.step(), before.step()
        ratios.append(ours / theirs)
        _say(str(number), f"{ours:.2f}", f"{theirs:.2f}", f"{ratios[-1]:.3f}")
    return statistics.median(ratios)


def _say(*cells: str) -> None:
    sys.stdout.write(_ROW.format(*cells))
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="CPU time of a step of this build and another.")
    parser.add_argument("before", type=Path, help="folder of the other build")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count")
    parser.add_argument("--width", default="64", help="ngf and ndf")
    parser.add_argument("--resolution", default="256", help="pixels")
    parser.add_argument("--batch", default="4", help="images")
    given = parser.parse_args(arguments)
    if not (given.before / "benchmarks" / "step.py").is_file():
        parser.error(f"{given.before} holds no build: git worktree add {given.before} COMMIT")
    size = [given.width, given.resolution, given.batch]
    now, before = Build(_ROOT, size), Build(given.before, size)
    _say("round", "now s", "before s", "ratio")
    try:
        median = compare(now, before, given.rounds)
    finally:
        now.end()
        before.end()
    _say("median", "", "", f"{median:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
