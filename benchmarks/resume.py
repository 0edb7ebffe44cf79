"""What an interruption costs: seconds until training resumes, and steps that are made again.

    python -m benchmarks.resume                                # nf 8, 64 px: a minute
    python -m benchmarks.resume --width 64 --resolution 256    # what is loaded is larger

A small run is trained and started again, each time in a process of its own that notes when it
has imported, opened the data, built the networks, loaded the checkpoint and made a step. Then it
is killed some times at random instants; the steps since its newest checkpoint are lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i_hpc.training.progress import Status
    from t2i_hpc.training.stopping import StopRequest

STAGES = ("python", "imports", "open the data", "build networks", "load", "first step")
_ROW = "{:<24}{:>10}\n"


class FirstStep:
    """A progress line that notes when the first step is shown, and asks to stop then."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self.seen: float | None = None

    def show(self, status: Status) -> None:
        """Note the time."""
        self.seen = self.seen or time.time()
        self._stop.reason = "measured"

    def say(self, message: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to end."""


def measure_start(arguments: list[str], started: float) -> list[float]:
    """Resume a run in this process; return the seconds of each of ``STAGES``."""
    marks = [started, time.time()]
    from t2i_hpc.config.compose import compose_config
    from t2i_hpc.config.tasks import TrainConfig
    from t2i_hpc.training.loop import Loop
    from t2i_hpc.training.rank_info import find_rank
    from t2i_hpc.training.session import build_setup, open_data
    from t2i_hpc.training.stopping import listening
    from t2i_hpc.training.world import joined_world

    config = compose_config("train", arguments, TrainConfig, None)
    marks.append(time.time())
    opened = open_data(config, find_rank(os.environ))
    opened.loader.start()
    marks.append(time.time())
    with joined_world(config.engine) as world, listening() as stop:
        line = FirstStep(stop)
        setup = build_setup(config, world, opened, line)
        marks.append(time.time())
        loop = Loop(setup, line, stop)
        marks.append(time.time())
        loop.run()
    marks.append(line.seen or time.time())
    return [after - before for before, after in itertools.pairwise(marks)]


@dataclass(frozen=True)
class Run:
    """A run that is trained, killed and resumed; `arguments` are its settings."""

    runs: Path
    arguments: list[str]

    def train(self, *arguments: str) -> None:
        """Train a session to its end."""
        subprocess.run(self._command(*arguments), check=True, stdout=subprocess.DEVNULL)

    def start(self) -> list[float]:
        """Resume in a fresh process; return the seconds of each of ``STAGES``."""
        arguments = ["engine.images=1000000000", *self.arguments]
        command = [
            sys.executable,
            "-m",
            "benchmarks.resume",
            "--child",
            repr(time.time()),
            *arguments,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
        return seconds

    def kill(self, steps: int) -> int:
        """Resume, kill after that many steps and a moment; return the steps that are lost."""
        from t2i_hpc.runs.checkpoint import newest_checkpoint

        wanted = self._steps() + steps
        with subprocess.Popen(
            self._command("engine.images=1000000000"), stdout=subprocess.DEVNULL
        ) as process:
            while self._steps() < wanted:
                if process.poll() is not None:
                    raise RuntimeError(f"training ended with {process.returncode}")
                time.sleep(0.01)
            process.kill()
        (folder,) = (path.parent for path in self.runs.glob("*/metrics.jsonl"))
        saved = newest_checkpoint(folder)
        return self._steps() - (saved.progress.step if saved else 0)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "t2i_hpc.train", *self.arguments, *arguments]

    def _steps(self) -> int:
        from t2i_hpc.common.files import read_json_lines

        rows = [read_json_lines(path) for path in self.runs.glob("*/metrics.jsonl")]
        return int(rows[0][-1]["step"]) if rows and rows[0] else 0


def table(starts: list[list[float]], lost: list[int], every: int) -> str:
    """Return the figures as lines of text: medians of the stages, and the steps lost."""
    lines = [_ROW.format("start to first step", "seconds")]
    for stage, seconds in zip(STAGES, zip(*starts, strict=True), strict=True):
        lines.append(_ROW.format(stage, f"{statistics.median(seconds):.2f}"))
    lines.append(_ROW.format("sum", f"{statistics.median(map(sum, starts)):.2f}"))
    if lost:
        lines.append("\n" + _ROW.format(f"{len(lost)} kills", "steps lost"))
        lines.append(_ROW.format("a save every", every))
        lines.append(_ROW.format("mean", f"{statistics.mean(lost):.1f}"))
        lines.append(_ROW.format("most", max(lost)))
    return "".join(lines)


def measure(given: argparse.Namespace) -> str:
    """Train, resume and kill in a folder of its own; return the table."""
    from tests.support.data import make_shards

    with TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), count=24, size=given.resolution)
        runs = Path(folder) / "runs"
        run = Run(
            runs,
            [
                f"data.path={shards}",
                f"runs={runs}",
                f"system.resolution={given.resolution}",
                f"system.generator_width={given.width}",
                f"system.discriminator_width={given.width}",
                "system.damsm.weight=0",
                f"engine.batch_size={given.batch}",
                f"engine.device={given.device}",
                "engine.log_every=1",
                "engine.samples_every_images=1000000000",
                f"engine.checkpoint.every_images={given.every * given.batch}",
            ],
        )
        run.train(f"engine.images={given.every * given.batch}")
        starts = [run.start() for _ in range(given.rounds)]
        draw = random.Random(0)
        lost = [run.kill(draw.randint(1, 2 * given.every)) for _ in range(given.kills)]
    return table(starts, lost, given.every)


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    if arguments[:1] == ["--child"]:
        sys.stdout.write(json.dumps(measure_start(arguments[2:], float(arguments[1]))) + "\n")
        return
    parser = argparse.ArgumentParser(description="What it costs to be interrupted.")
    parser.add_argument("--width", type=int, default=8, help="ngf and ndf")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=3, help="starts")
    parser.add_argument("--kills", type=int, default=5, help="kills")
    sys.stdout.write(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
