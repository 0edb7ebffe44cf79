"""What `evaluate` does with its configuration: compute this rank's shards, merge them, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluation.build import by_all_judges, comparisons
from t2i_hpc.evaluation.comparison import Comparison
from t2i_hpc.evaluation.detectors import build_detector
from t2i_hpc.evaluation.image_sources import ImageFolder
from t2i_hpc.evaluation.missing import refuse_missing
from t2i_hpc.evaluation.protocol import WITH_REAL
from t2i_hpc.evaluation.reference_statistics import check_export, write_reference
from t2i_hpc.evaluation.scores import few_images_warning, score_line
from t2i_hpc.runs.partial_statistics import shards_of_rank


def compute_shards(
    config: EvaluateConfig,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> None:
    """Compute the configured shard, or all: then ranks share them, and the first one scores.

    Args:
        config: of the command ``evaluate``.
        device: of generator, detector and sums.
        rank, ranks: this process and how many there are.
        barrier: waits for all ranks.
    """
    for judged in by_all_judges(config):
        compared = partial(comparisons, judged, device=device, alone=judged is config)
        _compute_shards(judged, compared, device, rank=rank, ranks=ranks, barrier=barrier)


def _compute_shards(
    config: EvaluateConfig,
    compared: Callable[..., Iterable[Comparison]],
    device: torch.device,
    *,
    rank: int,
    ranks: int,
    barrier: Callable[[], None],
) -> None:
    settings = config.evaluation
    # No rank is idle; the number of shards moves no score.
    shards = settings.shards if settings.shard is not None else max(settings.shards, ranks)
    detector = None
    for comparison in compared(shards=shards):
        _check_export(comparison, config.export_statistics)
        if rank == 0 and comparison.left_out and detector is None:
            say(comparison.left_out, sys.stderr)
        # Only now: what is compared was checked, and that may have refused the whole.
        detector = detector or build_detector(settings, device)
        if settings.shard is not None:
            _say_if_empty(comparison, settings.shard)
            comparison.compute([settings.shard], detector)
            continue
        comparison.compute(shards_of_rank(shards, rank, ranks), detector)
        barrier()
        if rank == 0:
            _report(comparison, config)


def merge_shards(config: EvaluateConfig, device: torch.device) -> None:
    """Merge the shards that are there and report the scores.

    Raises:
        EvaluationError: a shard has no valid file.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    for judged in by_all_judges(config):
        for comparison in comparisons(judged, device=device, alone=judged is config):
            _check_export(comparison, judged.export_statistics)
            refuse_missing(comparison, judged)
            _report(comparison, judged)


def _check_export(comparison: Comparison, path: str) -> None:
    """Refuse to export statistics of real images that there are not, or over another file.

    Raises:
        EvaluationError: says what to do.
    """
    if not path:
        return
    if comparison.reference is not None:
        raise EvaluationError(
            "export_statistics= writes what reference= already names: leave one of them out"
        )
    if not WITH_REAL & {*comparison.metrics}:
        raise EvaluationError(
            "export_statistics= writes the real images' statistics, which no metric asked for "
            "needs: add fid to evaluation.metrics"
        )
    check_export(Path(path), comparison.protocol.real_hash)


def _export(comparison: Comparison, path: str) -> None:
    """Write the real images' statistics, once for all checkpoints, and say where."""
    image_set = comparison.protocol.real_hash
    if path and check_export(Path(path), image_set):
        gaussian, detector = comparison.real_gaussian(), comparison.detector
        write_reference(Path(path), gaussian, detector, image_set, comparison.real_halves())
        say(f"{path}: mean and covariance of {gaussian.count:,} real images", sys.stderr)


def _say_if_empty(comparison: Comparison, shard: int) -> None:
    """Say that a shard has nothing to do, which looks like success otherwise."""
    sharding = comparison.sharding
    for target in (image_set.target for image_set in comparison.image_sets):
        if not sharding.range_of(target, shard):
            batches = -(-target.images // sharding.batch_size)
            say(
                f"shard {shard} of {sharding.shards} has no {target.image_set} images: "
                f"{target.images:,} images are {batches} batches of {sharding.batch_size}, "
                "and a shard is whole batches",
                sys.stderr,
            )


def _report(comparison: Comparison, config: EvaluateConfig) -> None:
    """Merge, record and print the scores of a comparison, and what moves them."""
    for row in comparison.score():
        say(json.dumps(row, sort_keys=True) if config.json else score_line(row))
    _export(comparison, config.export_statistics)
    warnings = [_lossy(config.images)]
    if "fid" in comparison.metrics:
        warnings.insert(0, few_images_warning(comparison.protocol))
    if WITH_REAL & {*comparison.metrics}:
        warnings.append(comparison.warning)
    for warning in filter(None, warnings):
        say(f"warning: {warning}", sys.stderr)


def _lossy(folder: str) -> str | None:
    """Return a warning where generated images went through JPEG."""
    count = ImageFolder(Path(folder)).lossy if folder else 0
    return f"{count:,} images of {folder} are JPEG: compression moves a score" if count else None
