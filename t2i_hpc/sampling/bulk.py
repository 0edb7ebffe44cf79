"""Images of many captions as files, over any number of ranks and array elements.

Image j of a caption is a function of (checkpoint, seed, key of the caption, j). Batches are whole
and begin at multiples of the batch size, as in an evaluation: the bits of a float32 image depend
on the size of its batch and its row in it, so every image is made in the same batch by whoever
makes it. A file is whole or not there; whoever starts again makes what is missing.

``index.jsonl`` follows from the request alone, so every writer would write the same bytes: who
finds all images there writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import sha256_of_json, write_json, write_text
from t2i_hpc.common.seeds import noise
from t2i_hpc.common.terminal import progress, say
from t2i_hpc.config.tasks import GenerateConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.runs.partial_statistics import shard_range
from t2i_hpc.sampling.caption_list import CaptionList, KeyedCaption, read_caption_list
from t2i_hpc.sampling.image_files import INDEX, png_bytes, replace_file
from t2i_hpc.sampling.loading import identify_weights, load_run
from t2i_hpc.sampling.request import expand, refuse_given
from t2i_hpc.sampling.trained_run import TrainedRun

REQUEST = "request.json"
_LONGEST_NAME = 200  # bytes; file systems take 255
_WRITERS = min(8, len(os.sched_getaffinity(0)))
_LEADING_DOT = re.compile(r"^\.")  # a hidden file would be overlooked


@dataclass(frozen=True)
class BulkRequest:
    """What is asked for, and where it goes.

    Attributes:
        run: the run's name.
        checkpoint: SHA-256 of the weights.
        captions: with their keys, in order.
        images_per_caption: images of each.
        seed: of noise, and of the words that are read of captions that are too long.
        batch_size: images that are made together.
        precision: that they are made in.
    """

    run: str
    checkpoint: str
    captions: CaptionList
    images_per_caption: int
    seed: int
    batch_size: int
    precision: str

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.captions.entries) * self.images_per_caption

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the images."""
        entries = [asdict(entry) for entry in self.captions.entries]
        return {
            "checkpoint": self.checkpoint,
            "captions": len(entries),
            "captions_sha256": sha256_of_json(entries),
            "images_per_caption": self.images_per_caption,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }

    @property
    def record(self) -> dict[str, Any]:
        """What ``request.json`` says."""
        return {"run": self.run, **self.identity}

    def entry(self, number: int) -> tuple[KeyedCaption, int]:
        """Return the caption of image `number` and which of its images that is."""
        place, image = divmod(number, self.images_per_caption)
        return self.captions.entries[place], image

    def name(self, number: int) -> str:
        """Return the file name of image `number`."""
        entry, image = self.entry(number)
        return f"{_safe(entry.key)}-{image:04d}.png"

    def noise(self, numbers: Sequence[int], width: int) -> Tensor:
        """Return noise float32 (B, width) of images, each by seed, key and image alone."""
        return noise(self.seed, "image of a key", map(self._stream, numbers), width)

    def _stream(self, number: int) -> int:
        entry, image = self.entry(number)
        digest = hashlib.sha256(f"{image} {entry.key}".encode()).digest()
        return int.from_bytes(digest[:8], "little")

    def row(self, number: int, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return what the index says of image `number`."""
        entry, image = self.entry(number)
        unknown = vocabulary.unknown(entry.caption)
        return {
            "file": self.name(number),
            "key": entry.key,
            "caption": entry.caption,
            "image": image,
            "seed": self.seed,
            **({"unknown": unknown} if unknown else {}),
        }


@dataclass(frozen=True)
class BulkJob:
    """A request, its folder, and how the work is split."""

    request: BulkRequest
    folder: Path
    shards: int

    @classmethod
    def of(cls, config: GenerateConfig) -> BulkJob:
        """Read captions and identify the weights; no network is built.

        Raises:
            UserError: no run, no captions, settings of grids, or a folder of other images.
        """
        _check_settings(config)
        captions = _captions(config)
        request = BulkRequest(
            Path(config.run).resolve().name,
            identify_weights(config.run, config.checkpoint),
            captions,
            config.images_per_caption or 1,
            config.seed,
            config.batch_size,
            config.precision,
        )
        _check_names(request)
        own = Path(config.run) / "generated" / sha256_of_json(request.identity)[:12]
        job = cls(request, Path(config.output) if config.output else own, config.shards)
        job.check_folder()
        return job

    def check_folder(self) -> None:
        """Refuse a folder of other images.

        Raises:
            ConfigurationError: says which setting differs.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"output={self.folder} is a file: name a folder")
        try:
            found = json.loads((self.folder / REQUEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if self.present():
                raise ConfigurationError(
                    f"output={self.folder} holds PNG files of something else: name another folder"
                ) from None
            return
        other = [key for key, value in self.request.identity.items() if found.get(key) != value]
        if other:
            raise ConfigurationError(
                f"output={self.folder} holds images of another request ({', '.join(other)}): "
                "name another folder, or ask as before to make what is missing there"
            )

    def present(self) -> set[str]:
        """Return the names of the images that are there; a file that a power cut emptied is not."""
        if not self.folder.is_dir():
            return set()
        with os.scandir(self.folder) as found:
            return {e.name for e in found if e.name.endswith(".png") and e.stat().st_size}

    def numbers(self, shard: int | None) -> range:
        """Return the images of a shard, which are whole batches; None: all."""
        if shard is None:
            return range(self.request.images)
        return shard_range(self.request.images, self.shards, shard, self.request.batch_size)

    def missing(self, numbers: range, there: set[str]) -> list[int]:
        """Return the images of a range that are not there."""
        return [n for n in numbers if self.request.name(n) not in there]

    def missing_shards(self) -> list[int]:
        """Return the shards with a missing image, ascending."""
        there = self.present()
        return [n for n in range(self.shards) if self.missing(self.numbers(n), there)]


def generate_files(
    config: GenerateConfig,
    job: BulkJob,
    device: torch.device,
    *,
    rank: int = 0,
    ranks: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> None:
    """Write the images of the configured shard, or of all, that are missing; ranks share them.

    Args:
        config: of the command ``generate``, with images_per_caption.
        job: :meth:`BulkJob.of` it.
        device: of the networks.
        rank, ranks: this process and how many share the work.
        barrier: waits for all ranks.

    Raises:
        UserError: the run cannot be loaded, or no caption has a known word.
    """
    trained = load_run(
        config.run,
        config.checkpoint,
        device=device,
        precision=config.precision,
        data=config.data.path,
    )
    notes = notes_on(job.request.captions, trained)
    if rank == 0:
        for note in notes:
            say(note, sys.stderr)
        write_json(job.folder / REQUEST, job.request.record)
    barrier()
    numbers, batch = job.numbers(config.shard), job.request.batch_size
    own = range(numbers.start, numbers.stop, batch)[rank::ranks]
    title = "images" if config.shard is None else f"images, shard {config.shard} of {job.shards}"
    _write_missing(job, trained, numbers, own, title if ranks == 1 else f"{title}, rank {rank}")
    barrier()
    if rank == 0:
        _finish(job, trained.vocabulary)


def notes_on(captions: CaptionList, trained: TrainedRun) -> list[str]:
    """Return what a person should know of the captions.

    Raises:
        ConfigurationError: no word of any caption is known.
    """
    vocabulary, longest = trained.vocabulary, trained.config.data.max_tokens
    texts = [entry.caption for entry in captions.entries]
    known = [len(vocabulary.encode(text)) for text in texts]
    if not any(known):
        raise ConfigurationError(
            f"no word of any caption is in the run's vocabulary of {vocabulary.size:,} words; use "
            "words of its training captions"
        )
    unknown = {text: words for text in texts if (words := vocabulary.unknown(text))}
    some = list(dict.fromkeys(word for words in unknown.values() for word in words))
    none = [text for text, count in zip(texts, known, strict=True) if not count]
    long = sum(count > longest for count in known)
    said = [
        (captions.empty, "are empty: left out"),
        (len(none), f"have no known word, and their images none to show: {_few(none)}"),
        (
            sum(text in unknown for text in texts),
            f"have words that are not in the vocabulary and are left out: {_few(some)}",
        ),
        (long, f"have more than {longest} {_kept(vocabulary)}"),
    ]
    total = len(texts) + captions.empty
    return [f"{count:,} of {total:,} captions {what}" for count, what in said if count]


def _kept(vocabulary: Vocabulary) -> str:
    """Say what is read of a caption that is too long."""
    if vocabulary.reads_beginning:
        return "tokens, of which the first are read"
    return "words, of which a random subset is read"


def _few(texts: Sequence[str], most: int = 5) -> str:
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def _write_missing(
    job: BulkJob, trained: TrainedRun, numbers: range, firsts: Sequence[int], title: str
) -> None:
    """Write the images that are not there, of the batches of `numbers` that begin with `firsts`."""
    request, there = job.request, job.present()
    batches = {first: range(first, first + request.batch_size) for first in firsts}
    missing = {
        first: {n for n in batch if n in numbers and request.name(n) not in there}
        for first, batch in batches.items()
    }
    total = sum(map(len, missing.values()))
    if not total:
        return
    with (
        progress(title, total, "images") as advance,
        ThreadPoolExecutor(_WRITERS, thread_name_prefix="png") as pool,
    ):
        written: list[Future[None]] = []
        for first in filter(missing.__getitem__, firsts):
            images = _batch(request, trained, batches[first]).cpu()
            for each in written:  # those of the batch before: two batches are in memory at most
                each.result()
            written = [
                pool.submit(_write_png, job.folder / request.name(number), image)
                for number, image in zip(batches[first], images, strict=True)
                if number in missing[first]
            ]
            advance(len(written))
        for each in written:
            each.result()


def _batch(request: BulkRequest, trained: TrainedRun, numbers: range) -> Tensor:
    """Return a whole batch, uint8 (B, 3, R, R); beyond the last image the first ones follow."""
    inside = [number % request.images for number in numbers]
    captions = [request.entry(number)[0].caption for number in inside]
    latent = request.noise(inside, trained.system.noise_width)
    return trained.generate_batch(captions, latent, request.seed)


def _write_png(path: Path, image: Tensor) -> None:
    replace_file(path, png_bytes(image.permute(1, 2, 0).contiguous().numpy()))


def _finish(job: BulkJob, vocabulary: Vocabulary) -> None:
    """Write the index where all images are there; say how many are."""
    request = job.request
    missing = len(job.missing(range(request.images), job.present()))
    if missing:
        say(f"{job.folder}: {missing:,} of {request.images:,} images are still missing", sys.stderr)
        return
    rows = (request.row(number, vocabulary) for number in range(request.images))
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    write_text(job.folder / INDEX, "".join(lines))
    say(job.folder / INDEX)


def _captions(config: GenerateConfig) -> CaptionList:
    """Return the captions asked for; braces in a file are letters, for its captions are found."""
    asked = [("", row.caption) for row in expand(config.captions, most=None)]
    listed = read_caption_list(config.captions_file) if config.captions_file else CaptionList([])
    if not asked and not listed.entries:
        raise ConfigurationError(
            "images_per_caption= needs captions: name a file of them with captions_file=, or give "
            "captions="
        )
    if not asked:
        return listed
    kept = [(entry.key, entry.caption) for entry in listed.entries]
    more = [(f"asked-{n:06d}" if kept else "", text) for n, (_, text) in enumerate(asked)]
    both = CaptionList.of([*kept, *more])
    return CaptionList(both.entries, listed.empty)


def _check_settings(config: GenerateConfig) -> None:
    """Refuse what belongs to a grid, or to no shard.

    Raises:
        ConfigurationError: says what to leave out.
    """
    refuse_given(config, ("columns", "rows"), "belongs to a grid: leave it out with "
                 "images_per_caption=")  # fmt: skip
    if config.shard is not None and config.shard >= config.shards:
        raise ConfigurationError(
            f"shard={config.shard} does not exist: shards={config.shards} makes the shards 0 to "
            f"{config.shards - 1}"
        )


def _check_names(request: BulkRequest) -> None:
    """Refuse keys that no file system takes as names.

    Raises:
        ConfigurationError: names the first one.
    """
    for number in range(0, request.images, request.images_per_caption):
        if len(request.name(number)) > _LONGEST_NAME:
            key = request.entry(number)[0].key
            raise ConfigurationError(
                f"the key {key[:40]!r}… is too long for a file name: give shorter keys, or none"
            )


def _safe(key: str) -> str:
    """Return a key as a file name, unlike for unlike keys."""
    return _LEADING_DOT.sub("%2E", quote(key, safe=" ()+,=@"))
