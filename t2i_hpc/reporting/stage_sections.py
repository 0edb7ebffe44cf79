"""The parts of a run's page about the stages of its generator; empty text without stages."""

from __future__ import annotations

from t2i_hpc.reporting.record import RunRecord
from t2i_hpc.reporting.sections import _frames, _section


def stages(record: RunRecord) -> str:
    """Images of all stages over time, side by side."""
    if not record.stages:
        return ""
    return _section(
        "Stages",
        "The images of all stages of the generator, each made of the features of the one before.",
        _frames(record.stages, "Stages"),
    )


def words(record: RunRecord) -> str:
    """The words that each stage reads, over time."""
    if not record.words:
        return ""
    return _section(
        "Words that the stages read",
        "For each stage after the first the five words that it reads most: a word is read where "
        "the picture is bright; the number is its share of all reading.",
        _frames(record.words, "Words"),
    )
