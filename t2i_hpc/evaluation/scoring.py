"""From an evaluation's configuration to what is compared; no network is built before it draws.

So whoever only counts parts (a merge, a launcher that asks which shards are missing) needs the
hashes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from t2i_hpc.common.errors import ConfigurationError, EvaluationError
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import Division
from t2i_hpc.evaluation.partial_statistics import part_range
from t2i_hpc.evaluation.sources import Source, folder_source, run_source
from t2i_hpc.sampling.image_files import SavedImages

_CACHE = "real-statistics"
_CPU = torch.device("cpu")


def comparisons(
    config: EvaluateConfig, *, device: torch.device = _CPU, shards: int | None = None
) -> Iterator[Comparison]:
    """Give what the configuration compares, one checkpoint after the other.

    Args:
        config: of the door ``evaluate``.
        device: where to draw and to sum up.
        shards: parts, where they are not those of the configuration.

    Raises:
        UserError: a folder, run, checkpoint, split or weights file that is not there, too few
            images, metrics that cannot be had.
    """
    settings = config.evaluation
    division = Division(shards or settings.shards, settings.batch_size)
    if settings.shard is not None:
        part_range(settings.images, division.parts, settings.shard)
    source = folder_source(config) if config.images else run_source(config)
    for subject in source.subjects(device):
        comparison = _comparison(config, source, subject, division, device)
        comparison.check()
        if settings.save_images == "none":
            yield comparison
            continue
        yield _saving(comparison, settings)


def _saving(comparison: Comparison, settings: EvaluationConfig) -> Comparison:
    """Return a comparison that also writes its generated images.

    Raises:
        ConfigurationError: they are files already.
    """
    subject = comparison.subject
    if subject.describe is None:
        raise ConfigurationError(
            "evaluation.save_images writes what a run generates: the images of images= are files "
            "already, leave it out"
        )
    saved = SavedImages(
        comparison.generated.folder / "images",
        settings.save_images,
        settings.images,
        settings.batch_size,
        subject.describe,
    )
    drawn = dataclasses.replace(subject, draw=saved.writing(subject.draw))
    return dataclasses.replace(comparison, subject=drawn, saved=saved)


def _comparison(
    config: EvaluateConfig,
    source: Source,
    subject: Subject,
    division: Division,
    device: torch.device,
) -> Comparison:
    settings = config.evaluation
    return Comparison(
        output=source.output,
        cache=Path(settings.cache or source.output.parent / _CACHE),
        subject=subject,
        draw_real=source.draw_real,
        detector=source.detector,
        protocol=source.protocol,
        names=source.names,
        warning=source.warning,
        metrics=settings.metrics,
        division=division,
        device=device,
    )


def missing_shards(config: EvaluateConfig, shards: int | None = None) -> list[int]:
    """Return the evaluation shards whose valid files are not there, ascending.

    No network is built. A shard counts as missing when a file of either side, of any of the
    checkpoints that are named, is missing, damaged or of another protocol.

    Args:
        config: of the command ``evaluate``.
        shards: how many there are; None for ``evaluation.shards``.

    Raises:
        UserError: as :func:`comparisons`.
    """
    compared = comparisons(config, shards=shards)
    return sorted({part for comparison in compared for part in comparison.missing()})


def refuse_missing(comparison: Comparison, config: EvaluateConfig) -> None:
    """Refuse to merge where a part has no valid file.

    Raises:
        EvaluationError: names the first such shard and the command that fills it.
    """
    missing = comparison.missing()
    if not missing:
        return
    shard, sides = next(iter(missing.items()))
    more = f" ({len(missing)} are missing in all)" if len(missing) > 1 else ""
    raise EvaluationError(
        f"shard {shard} of {config.evaluation.shards} has no valid file for the "
        f"{' and '.join(sides)} images{more}; fill it with: {command_of(config, shard)}"
    )


def command_of(config: EvaluateConfig, shard: int) -> str:
    """Return the command line that computes one shard of an evaluation."""
    settings = dataclasses.replace(config.evaluation, shard=shard, merge=False)
    asked = entries(dataclasses.replace(config, evaluation=settings))
    usual = {entry.key: entry.value for entry in entries(EvaluateConfig())}
    words = [f"{e.key}={_written(e.value)}" for e in asked if e.value != usual[e.key]]
    return " ".join(["python -m t2i_hpc.evaluate", *words])


def _written(value: object) -> str:
    """Return a value as the command line reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)
