"""Which runs of a sweep are still to be scored, and how each one's evaluation is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from t2i_hpc.cluster.sweeps import read_sweep
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.grammar import quoted
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.comparison import Comparison
from t2i_hpc.evaluation.metrics import METRICS
from t2i_hpc.evaluation.scores import FILE_NAME
from t2i_hpc.runs.layout import list_checkpoints

Compare = Callable[[EvaluateConfig], Iterable[Comparison]]


@dataclasses.dataclass(frozen=True)
class Unscored:
    """The runs of a sweep that lack a score.

    Attributes:
        runs: their folders.
        untrained: how many others have no checkpoint yet.
        scored: how many others have all scores already.
    """

    runs: tuple[Path, ...]
    untrained: int
    scored: int

    def text(self, sweep: Path) -> str:
        """Return a sentence on the runs that are left out, "" where there are none."""
        reasons = {"no checkpoint yet": self.untrained, "these scores already": self.scored}
        told = [f"{count} with {reason}" for reason, count in reasons.items() if count]
        return f"{sweep}: left out {' and '.join(told)}" if told else ""


def unscored_runs(config: EvaluateConfig, compare: Compare) -> Unscored:
    """Return the runs of the sweep ``config.run`` that are to be scored.

    Args:
        config: of the command ``evaluate``.
        compare: gives what a configuration compares.

    Raises:
        ConfigurationError: a setting is for one run alone.
        RunError: no run of the sweep has a checkpoint.
        UserError: whatever the evaluation of one of them would refuse.
    """
    _check_for_sweep(config)
    runs = [point.run for point in read_sweep(Path(config.run)).points]
    trained = [run for run in runs if list_checkpoints(run)]
    if not trained:
        raise RunError(
            f"none of the {len(runs)} runs of {config.run} has a checkpoint yet: train it first"
        )
    # All points, before any is submitted: what the last one refuses costs no place in the queue.
    compared = {run: list(compare(dataclasses.replace(config, run=str(run)))) for run in trained}
    left = tuple(run for run in trained if not all(map(_is_scored, compared[run])))
    return Unscored(left, len(runs) - len(trained), len(trained) - len(left))


def arguments_for(run: Path, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments of a sweep's evaluation for one of its runs."""
    named = f"run={quoted(str(run))}"
    return tuple(named if each.startswith("run=") else each for each in arguments)


def _check_for_sweep(config: EvaluateConfig) -> None:
    settings = config.evaluation
    if settings.shard is not None or settings.merge:
        raise ConfigurationError(
            f"each run of {config.run} is scored by a job of its own: leave evaluation.shard and "
            "evaluation.merge out"
        )
    for key in ("output", "export_statistics"):
        if getattr(config, key):
            raise ConfigurationError(
                f"{key}= is one place and {config.run} is a sweep of several runs: leave it out, "
                "or score one of its runs"
            )


def _is_scored(comparison: Comparison) -> bool:
    """Whether all scores that a comparison would make are recorded."""
    recorded = {
        (row.get("checkpoint"), row.get("protocol"))
        for row in read_json_lines(comparison.output / FILE_NAME)
    }
    hashes = [comparison.protocol.hash_of(metric) for metric in METRICS]
    for metric in comparison.metrics:
        digest = comparison.protocol.hash_of(metric)
        # A hash that two metrics share does not say which of them was scored: it is cheap to ask.
        if hashes.count(digest) > 1 or (comparison.subject.checkpoint, digest) not in recorded:
            return False
    return True
