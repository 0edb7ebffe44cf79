"""Tars as other projects write them, and the stream that reads them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import webdataset

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.webdataset_stream import webdataset_loader
from tests.support.data import captions_of, image_bytes

RESOLUTION, BATCH = 16, 8
VOCABULARY = Vocabulary.from_captions(text for number in range(30) for text in captions_of(number))


def write_tars(folder: Path, samples: list[dict[str, Any]], each: int = 5) -> str:
    """Write samples with webdataset's own writer; return their brace pattern."""
    folder.mkdir(exist_ok=True)
    for place in range(0, len(samples), each):
        with webdataset.TarWriter(str(folder / f"{place // each}.tar")) as writer:
            for sample in samples[place : place + each]:
                writer.write(sample)
    return f"{folder}/{{0..{(len(samples) - 1) // each}}}.tar"


def foreign(number: int, kind: str = "txt", size: int = 24) -> dict[str, Any]:
    """Return a sample as other projects write it."""
    text: dict[str, Any] = {
        "txt": {"txt": "\n".join(captions_of(number))},
        "json": {"json": json.dumps({"caption": captions_of(number)[0], "class": 7})},
        "both": {"txt": captions_of(number)[1], "json": json.dumps({"text": "unknown"})},
    }[kind]
    return {"__key__": f"{number:04d}", "png": image_bytes(number, "PNG", size, size), **text}


def stream_of(urls: str, rank: int = 0, world: int = 1, **settings: Any) -> Loader:
    """Open a stream over a brace pattern; `settings` are those of the data."""
    given: dict[str, Any] = {
        "workers": 0,
        "max_tokens": 6,
        "shuffle_buffer": 8,
        "retry_seconds": 0.5,
    }
    config = DataConfig(reader="webdataset", urls=[urls], **(given | settings))
    return webdataset_loader(config, VOCABULARY, RESOLUTION, 3, RankSlice(BATCH, rank, world))


def take(stream: Loader, count: int, start: int = 0) -> list[Batch]:
    """Return the first batches and end the workers."""
    batches = stream.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()  # type: ignore[attr-defined]


def keys_of(batches: list[Batch]) -> list[str]:
    """Return the names of all samples in their order."""
    return [key for batch in batches for key in batch.keys]
