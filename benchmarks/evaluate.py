"""How fast images are scored: generator, detector and both, against torch-fidelity; the merge.

    python -m benchmarks.evaluate                        # 256 px, nf 32, N = 64: some minutes
    python -m benchmarks.evaluate --images 16 --shards 20 --width 8

All networks have random weights, which moves no time. Torch-fidelity extracts the same images
at its defaults with the same weights; the largest difference of the features is printed. Shards
run as processes side by side, each with its share of the threads.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i_hpc.common.seeds import noise
from t2i_hpc.evaluation.detectors.inception import InceptionV3
from t2i_hpc.evaluation.fid import NAMES, Moments, frechet_distance
from t2i_hpc.evaluation.pipeline import extract_features
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.runs.partial_statistics import (
    Header,
    PartialStatistics,
    Target,
    merge_sums,
    shard_path,
    shard_range,
)

CPU = torch.device("cpu")
SENTENCE, NOISE = 256, 100
_DEFAULT_BATCH = 64  # torch-fidelity's
_FEATURES = 2048
_ROW = "{:<34}{:>12}{:>14}\n"


@dataclass(frozen=True)
class Size:
    """What is measured: N images of so many px, of a generator of so many channels."""

    images: int
    resolution: int
    width: int
    batch: int


def write_inception(path: Path) -> None:
    """Write Inception's weights, drawn at random so that signals keep their size."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3(
            "random", ["2048"], feature_extractor_weights_path=empty
        )
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def generated_images(size: Size) -> Callable[[range], Tensor]:
    """Return what gives images by number of SSA-GAN's generator, uint8 (B, 3, R, R)."""
    torch.manual_seed(0)
    generator = SSAGenerator(
        size.resolution, width=size.width, noise_width=NOISE, sentence_width=SENTENCE
    ).eval()

    @torch.no_grad()
    def images_of(numbers: range) -> Tensor:
        latent = noise(1, "noise", numbers, NOISE)
        sentences = noise(1, "sentences", numbers, SENTENCE)
        images = generator(latent, sentences).images[-1]
        levels: Tensor = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return levels

    return images_of


def stored_images(size: Size) -> Callable[[range], Tensor]:
    """Return what gives images by number that cost nothing."""
    images = torch.randint(0, 256, (size.batch, 3, size.resolution, size.resolution))
    images = images.to(torch.uint8)
    return lambda numbers: images[: len(numbers)]


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes the second time."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def score(
    images_of: Callable[[range], Tensor], detector: InceptionV3, numbers: range, batch: int
) -> Moments:
    """Return the moments of images, as `evaluate` makes them."""
    moments = Moments.empty(detector.identity.width)
    extract_features(images_of, detector, numbers, batch, moments.add)
    return moments


def one_shard(weights: Path, size: Size, shards: int, shard: int, threads: int) -> None:
    """Generate and score one shard in this process."""
    torch.set_num_threads(threads)
    numbers = shard_range(size.images, shards, shard, size.batch)
    score(generated_images(size), InceptionV3(weights, CPU), numbers, size.batch)


def seconds_of_shards(weights: Path, size: Size, shards: int, threads: int) -> float:
    """Return how long all shards take side by side, their processes' start included."""
    context = multiprocessing.get_context("spawn")
    share = max(1, threads // shards)
    start = time.perf_counter()
    workers = [
        context.Process(target=one_shard, args=(weights, size, shards, shard, share))
        for shard in range(shards)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a shard failed")
    return time.perf_counter() - start


@contextmanager
def written_shards(shards: int, width: int) -> Iterator[tuple[list[Path], Target]]:
    """Give the files of so many shards of two images each."""
    target = Target("generated", "0" * 12, "0" * 64, 2 * shards, 2)
    rows = torch.randn(2, width)
    moments = Moments.empty(width)
    moments.add_rows(rows)
    with TemporaryDirectory() as folder:
        paths = [shard_path(Path(folder), shard, shards, 2) for shard in range(shards)]
        for shard, path in enumerate(paths):
            header = Header(target, 2 * shard, 2 * shard + 2, shard, shards)
            PartialStatistics(header, dict(moments.arrays())).save(path)
        yield paths, target


def merge_row(shards: int, width: int) -> str:
    """Return what the merge of so many shards takes, and what it adds to the largest memory."""
    with written_shards(shards, width) as (paths, target):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        merge_sums(paths, target, NAMES)
        taken = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return (
        f"merge of {shards:,} shards, {width} features: {taken:.1f} s, "
        f"{grown:.0f} MiB more at the peak\n"
    )


def distance_row(width: int) -> str:
    """Return how long the Fréchet distance takes with many images and with few."""
    taken = []
    for count in (2 * width, width // 4):
        both = []
        for scale in (1.0, 1.1):
            both.append(Moments.empty(width))
            both[-1].add_rows(scale * torch.randn(count, width))
        taken.append(seconds(partial(frechet_distance, *both)))
    many, few = taken
    return f"Fréchet distance, {width} features: {many:.2f} s (N > D), {few:.2f} s (N < D)\n"


def speed_rows(weights: Path, size: Size, threads: int) -> Iterator[str]:
    """Give the lines of the table of speeds."""
    numbers = range(size.images)
    stored, generated = stored_images(size), generated_images(size)
    detector = InceptionV3(weights, CPU)
    fidelity = FeatureExtractorInceptionV3(
        "fidelity", ["2048"], feature_extractor_weights_path=str(weights)
    )
    few = min(size.images, _DEFAULT_BATCH)
    images = stored(range(size.batch)).repeat(-(-few // size.batch), 1, 1, 1)[:few]
    with torch.inference_mode():
        slow = few / seconds(lambda: fidelity(images))
        expected = fidelity(images[:8])[0]
    difference = (detector.features(images[:8]) - expected).abs().max() / expected.abs().max()

    def row(name: str, speed: float) -> str:
        return _ROW.format(name, f"{speed:.1f}", f"{speed / slow:.2f}")

    yield row("torch-fidelity, batch 64", slow)
    fast = size.images / seconds(lambda: score(stored, detector, numbers, size.batch))
    yield row("our detector and sums", fast)
    batches = [range(n, n + size.batch) for n in numbers[:: size.batch]]
    yield row("generator", size.images / seconds(lambda: [generated(batch) for batch in batches]))
    both = seconds(lambda: score(generated, detector, numbers, size.batch))
    yield row("generator and detector", size.images / both)
    for shards in (1, 2, 4):
        taken = seconds_of_shards(weights, size, shards, threads)
        yield row(f"{shards} process(es), start included", size.images / taken)
    yield f"largest difference of features, over the largest: {float(np.float64(difference)):.1e}\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--merge-width", type=int, default=512, help="2048: 34 GB of files")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = Size(given.images, given.resolution, given.width, given.batch)
    sys.stdout.write(_ROW.format("", "images/s", "of fidelity"))
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        write_inception(weights)
        for line in speed_rows(weights, size, given.threads):
            sys.stdout.write(line)
            sys.stdout.flush()
    sys.stdout.write(merge_row(given.shards, given.merge_width))
    sys.stdout.write(distance_row(_FEATURES))


if __name__ == "__main__":
    main()
