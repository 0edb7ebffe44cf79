"""How fast training reads: our stream between the decoder's limit and the usual loaders.

    python -m benchmarks.data                                   # 304 px JPEG: two minutes
    python -m benchmarks.data --size 64 --samples 100 --images 480 --rounds 1    # seconds
    python -m benchmarks.data --index          # indexing tars beside cat, see benchmarks.building
    python -m benchmarks.data --build          # memory of a partition

Every row makes the same training samples (a 256 px crop of a 304 px JPEG, mirrored by chance,
with the tokens of one caption) from the same 400 synthetic images, on local files in the page
cache. "raw decode" turns bytes in memory into pixels, always in the same memory, and does
nothing else: no loader that decodes whole images can beat it with as many processes. The fraction
of it is given for as many cores as a row uses. "whole images" is our stream without the
libjpeg-turbo that decodes windows alone. Rounds go around all rows and each figure's
best one counts: other work on the machine only ever slows a loader down. CPU time of the main
process, which is all of a loader's without workers, suffers least. The second table is that of
benchmarks/sampler.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from benchmarks import building
from benchmarks import sampler as order
from t2i_hpc.common.process import keep_freed_memory
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.captions import encode_caption, pad
from t2i_hpc.data.cropping import find_crop_decoder
from t2i_hpc.data.images import Pixels, crop_and_flip, decode, encode, resize_shorter
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split, stack
from t2i_hpc.data.training_data import indexed_loader

_OCTAVES = ((32, 50.0), (16, 25.0), (8, 12.0), (4, 6.0))  # pixels of detail and its deviation
_SHARD_SAMPLES, _EPOCH = 100, 10**9
_INDEXED = 4.4e6  # bytes of tars for each of --samples; as many as take a second to read
_WARM_UP = 12  # batches: past the start of workers and what they made ahead
_ONE, _TWO = "raw decode, one core", "raw decode, two cores"
_ROW = "{:<36}{:>10}{:>15}{:>25}\n"
Loader = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Work:
    """What is read: a split of JPEGs, the same as files, and how samples are made of them."""

    split: Split
    folder: Path
    config: DataConfig
    resolution: int
    batch: int

    @property
    def load_size(self) -> int:
        """Shorter side before the crop, in pixels."""
        return round(self.resolution * self.config.resize_ratio)


@dataclass(frozen=True)
class Speed:
    """Images a second of wall time; CPU seconds of the main process for an image."""

    images: float
    main: float


def draw(rng: np.random.Generator, size: int) -> Pixels:
    """Draw noise that is smooth as photographs are: the finer the detail, the weaker.

    As JPEG 4:4:4 of quality 95 it takes 0.45 bytes a pixel; photographs of COCO and CUB at
    304 px take 0.43.
    """
    total = np.full((size, size, 3), 128.0)
    for step, deviation in _OCTAVES:
        side = -(-size // step)
        noise = rng.normal(128, 40, (side, side, 3)).clip(0, 255).astype(np.uint8)
        scaled = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        total += (np.asarray(scaled) - 128.0) * (deviation / 40)
    return total.clip(0, 255).astype(np.uint8)


def make_work(folder: Path, given: argparse.Namespace) -> Work:
    """Write synthetic JPEGs and captions, once as files and once as shards."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for number in range(given.samples):
        content = encode(draw(rng, given.size), "jpeg", 95)
        (images / f"{number:06d}.jpg").write_bytes(content)
        text = f"a picture of number {number % 10} of the smooth kind\n"
        (images / f"{number:06d}.txt").write_text(text)
    output = folder / "shards"
    settings = ShardsConfig(
        images=str(images), output=str(output), size=given.size, shard_samples=_SHARD_SAMPLES
    )
    build_split(settings)
    config = DataConfig(path=str(output))
    resolution = round(given.size / config.resize_ratio)
    return Work(Split.open(config, "train"), images, config, resolution, given.batch)


def raw_decode(work: Work) -> Iterator[int]:
    """Decode JPEGs that are in memory."""
    contents = [path.read_bytes() for path in sorted(work.folder.glob("*.jpg"))]
    endless = itertools.cycle(contents)
    memory = np.empty(4 * decode(contents[0]).size, np.uint8)
    while True:
        for content in itertools.islice(endless, work.batch):
            simplejpeg.decode_jpeg(content, "RGB", buffer=memory)
        yield work.batch


def raw_decode_twice(work: Work) -> Iterator[int]:
    """Do the same in two processes at once."""
    context = multiprocessing.get_context("fork")
    done = context.RawArray("q", 2)

    def count(place: int) -> None:
        for images in raw_decode(work):
            done[place] += images

    team = [context.Process(target=count, args=(place,), daemon=True) for place in range(2)]
    for process in team:
        process.start()
    try:
        yielded = 0
        while True:
            while sum(done) < yielded + work.batch:
                time.sleep(1e-3)
            yielded += work.batch
            yield work.batch
    finally:
        for process in team:
            process.kill()
            process.join()


def ours(work: Work, workers: int, crops: bool = True) -> Iterator[int]:
    """Read through our stream, with or without a decoder of windows."""
    config = DataConfig(path=work.config.path, workers=workers)
    found = find_crop_decoder() if crops else None
    with patch("t2i_hpc.data.training_data.find_crop_decoder", return_value=found):
        stream = indexed_loader(config, work.split, work.resolution, 0, RankSlice(work.batch))
    for batch in stream.batches(0):
        yield len(batch.images)


def plain_webdataset(work: Work) -> Iterator[int]:
    """Read by webdataset's own pipeline with our decoder and crop, in one process."""
    rng = np.random.default_rng(0)

    def make(image: bytes, text: bytes) -> tuple[Pixels, list[int]]:
        captions = json.loads(text)["captions"]
        caption = captions[int(rng.integers(len(captions)))]
        chosen_by = 0, "words", int(rng.integers(_EPOCH))
        tokens = encode_caption(caption, work.split.vocabulary, work.config.max_tokens, chosen_by)
        pixels = resize_shorter(decode(image), work.load_size)
        return crop_and_flip(pixels, work.resolution, rng), tokens

    tars = sorted(str(path) for path in work.split.manifest.folder.glob("*.tar"))
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(100).repeat()
    made = (make(*pair) for pair in samples.to_tuple("jpg", "json"))
    while True:
        images, tokens = zip(*itertools.islice(made, work.batch), strict=True)
        pad(tokens, work.config.max_tokens)
        yield len(stack(images))


class Files(Dataset[Any]):
    """A file an image, a text file of captions beside it, torchvision's transforms."""

    def __init__(self, work: Work) -> None:
        self._paths = sorted(work.folder.glob("*.jpg"))
        texts = [path.with_suffix(".txt").read_text() for path in self._paths]
        vocabulary, most = work.split.vocabulary, work.config.max_tokens
        tokens, _ = pad([vocabulary.encode(text)[:most] for text in texts], most)
        self._tokens = torch.from_numpy(tokens)
        self._transform = transforms.Compose(
            [
                transforms.Resize(work.load_size),
                transforms.RandomCrop(work.resolution),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(self._paths[index]).convert("RGB")
        return self._transform(image), self._tokens[index]


def per_sample(work: Work, workers: int) -> Iterator[int]:
    """Read as the reference implementations do: one sample a call, collated by torch."""
    files = Files(work)
    sampler = RandomSampler(files, replacement=True, num_samples=_EPOCH)
    for images, _ in DataLoader(files, work.batch, sampler=sampler, num_workers=workers):
        yield len(images)


def loaders(work: Work) -> dict[str, tuple[Loader, str]]:
    """Return what is compared, each with the row that is its limit."""
    rows: dict[str, tuple[Loader, str]] = {
        _ONE: (partial(raw_decode, work), _ONE),
        _TWO: (partial(raw_decode_twice, work), _TWO),
        "webdataset pipeline, workers=0": (partial(plain_webdataset, work), _ONE),
    }
    for workers, limit in ((0, _ONE), (1, _ONE), (2, _TWO)):
        rows[f"ours, workers={workers}"] = (partial(ours, work, workers), limit)
        name = f"ours, whole images, workers={workers}"
        rows[name] = (partial(ours, work, workers, crops=False), limit)
    for workers, limit in ((0, _ONE), (2, _TWO)):
        name = f"PIL + transforms, workers={workers}"
        rows[name] = (partial(per_sample, work, workers), limit)
    return rows


def measure(loader: Loader, batches: int) -> Speed:
    """Take batches from a fresh loader as fast as it makes them."""
    made = loader()
    for _ in itertools.islice(made, _WARM_UP):
        pass
    wall, processor = time.perf_counter(), time.process_time()
    images = sum(itertools.islice(made, batches))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    made.close()  # type: ignore[attr-defined]
    return Speed(images / wall, processor / images)


def best_of(speeds: list[Speed]) -> Speed:
    """Return the most images a second and the fewest seconds of the main process."""
    return Speed(max(speed.images for speed in speeds), min(speed.main for speed in speeds))


def compare(work: Work, batches: int, rounds: int) -> str:
    """Return the table of all loaders, each by its best round."""
    compared = loaders(work)
    turns = [
        {name: measure(made, batches) for name, (made, _) in compared.items()}
        for _ in range(rounds)
    ]
    best = {name: best_of([turn[name] for turn in turns]) for name in compared}
    lines = [_ROW.format("loader", "images/s", "of raw decode", "main process, µs/image")]
    for name, speed in best.items():
        fraction = f"{speed.images / best[compared[name][1]].images:.2f}"
        lines.append(_ROW.format(name, f"{speed.images:.0f}", fraction, f"{speed.main * 1e6:.0f}"))
    return "".join(lines)


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Speed of the data stream and of the sampler.")
    parser.add_argument("--size", type=int, default=304, help="stored side in pixels")
    parser.add_argument("--samples", type=int, default=400, help="synthetic images")
    parser.add_argument("--batch", type=int, default=24, help="images of a batch")
    parser.add_argument("--images", type=int, default=720, help="images a row and round")
    parser.add_argument("--rounds", type=int, default=6, help="the best one counts")
    parser.add_argument("--index", action="store_true", help="indexing in place beside cat")
    parser.add_argument("--build", action="store_true", help="memory of a partition")
    given = parser.parse_args(arguments)
    if given.build:
        building.compare_partitions()
        return
    if given.index:
        rng = np.random.default_rng(0)
        images = [encode(draw(rng, given.size), "jpeg", 95) for _ in range(min(given.samples, 60))]
        logging.disable()
        size = sum(map(len, images)) / len(images)
        count = round(_INDEXED * given.samples / size)
        building.compare_index(images, max(count, 4), given.rounds)
        return
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    logging.disable()
    with TemporaryDirectory() as folder:
        work = make_work(Path(folder), given)
        size = work.split.manifest.bytes / given.samples / 1e3
        sys.stdout.write(f"{given.size} px JPEG, {size:.0f} kB; crops of {work.resolution} px\n\n")
        sys.stdout.write(compare(work, given.images // given.batch, given.rounds) + "\n")
    sys.stdout.write(order.table(given.batch))


if __name__ == "__main__":
    main(sys.argv[1:])
