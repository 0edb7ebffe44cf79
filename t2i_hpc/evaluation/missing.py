"""Evaluation shards that are not there yet, and the commands that compute them."""

from __future__ import annotations

import dataclasses

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.build import by_all_judges, comparisons
from t2i_hpc.evaluation.comparison import Comparison


def missing_shards(config: EvaluateConfig, shards: int | None = None) -> list[int]:
    """Return the evaluation shards whose valid files are not there, ascending.

    No network is built. A shard counts as missing when a file of either image set, of any of the
    checkpoints that are named, is missing, damaged or of another protocol.

    Args:
        config: of the command ``evaluate``.
        shards: how many there are; None for ``evaluation.shards``.

    Raises:
        UserError: as :func:`comparisons`.
    """
    compared = (
        comparison
        for judged in by_all_judges(config)
        for comparison in comparisons(judged, shards=shards, alone=judged is config)
    )
    return sorted({shard for comparison in compared for shard in comparison.missing()})


def refuse_missing(comparison: Comparison, config: EvaluateConfig) -> None:
    """Refuse to merge where a shard has no valid file.

    Raises:
        EvaluationError: names the first such shard and the command that fills it.
    """
    missing = comparison.missing()
    if not missing:
        return
    shard, image_sets = next(iter(missing.items()))
    more = f" ({len(missing)} are missing in all)" if len(missing) > 1 else ""
    raise EvaluationError(
        f"shard {shard} of {config.evaluation.shards} has no valid file for the "
        f"{' and '.join(image_sets)} images{more}; fill it with: {command_of(config, shard)}"
    )


def command_of(config: EvaluateConfig, shard: int) -> str:
    """Return the command line that computes one shard of an evaluation."""
    settings = dataclasses.replace(config.evaluation, shard=shard, merge=False)
    asked = entries(dataclasses.replace(config, evaluation=settings))
    usual = {entry.key: entry.value for entry in entries(EvaluateConfig())}
    overrides = [f"{e.key}={_written(e.value)}" for e in asked if e.value != usual[e.key]]
    return " ".join(["python -m t2i_hpc.evaluate", *overrides])


def _written(value: object) -> str:
    """Return a value as the command line reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)
