"""The promise of the stream: one batch, whatever the ranks, workers and restarts."""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.loader import Loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
from tests.support.data import captions_of, draw_image, make_shards, vouch

RESOLUTION, BATCH = 16, 24
WORLDS, WORKERS = (1, 2, 3, 4, 8), (0, 1, 2, 3)
Sample = tuple[bytes, tuple[int, ...], int, int, str, str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("stream"), count=22, size=24, shard_samples=5)


def config_of(shards: Path, workers: int = 0) -> DataConfig:
    return DataConfig(path=str(shards), max_tokens=6, shuffle_window=2, workers=workers)


def stream_of(
    shards: Path, workers: int = 0, rank: int = 0, world: int = 1, seed: int = 3
) -> Loader:
    config = config_of(shards, workers)
    split = Split.open(config, "train")
    return indexed_loader(config, split, RESOLUTION, seed, RankSlice(BATCH, rank, world))


def take(stream: Loader, start: int, count: int) -> list[Batch]:
    batches = stream.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def samples_of(batch: Batch) -> dict[int, Sample]:
    """Return everything about each sample, by position."""
    rows = zip(
        batch.images,
        batch.tokens.tolist(),
        batch.lengths.tolist(),
        batch.classes.tolist(),
        batch.captions,
        batch.keys,
        strict=True,
    )
    samples = [(image.numpy().tobytes(), tuple(tokens), *rest) for image, tokens, *rest in rows]
    return dict(zip(batch.positions.tolist(), samples, strict=True))


@pytest.fixture(scope="module")
def straight(shards: Path) -> dict[int, Sample]:
    """The first 288 samples as one rank without workers reads them from the beginning."""
    batches = take(stream_of(shards), 0, 12)
    assert [batch.positions[0].item() for batch in batches] == [BATCH * n for n in range(12)]
    return {place: sample for batch in batches for place, sample in samples_of(batch).items()}


def check(shards: Path, straight: dict[int, Sample], workers: int, world: int, start: int) -> None:
    """Read three global batches by all ranks of a world, and compare them with the straight way."""
    ranks = [take(stream_of(shards, workers, rank, world), start, 3) for rank in range(world)]
    for number, parts in enumerate(zip(*ranks, strict=True)):
        positions = [place for part in parts for place in part.positions.tolist()]
        begin = start + number * BATCH
        assert positions == list(range(begin, begin + BATCH))
        for part in parts:
            for place, sample in samples_of(part).items():
                assert sample == straight[place]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("workers", WORKERS)
def test_one_batch_any_world(
    shards: Path, straight: dict[int, Sample], workers: int, world: int
) -> None:
    check(shards, straight, workers, world, start=13)


@given(st.sampled_from(WORLDS), st.sampled_from(WORKERS), st.integers(0, 288 - 3 * BATCH))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_one_batch_any_world_from_any_step(
    shards: Path, straight: dict[int, Sample], world: int, workers: int, start: int
) -> None:
    check(shards, straight, workers, world, start)


RANK = """
import hashlib, itertools, sys
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
rank, world, workers, start = map(int, sys.argv[2:])
config = DataConfig(path=sys.argv[1], max_tokens=6, shuffle_window=2, workers=workers)
split = Split.open(config, "train")
stream = indexed_loader(config, split, 16, 3, RankSlice(24, rank, world))
for batch in stream.batches(start):
    for place, image, tokens in zip(batch.positions.tolist(), batch.images, batch.tokens):
        content = image.numpy().tobytes() + tokens.numpy().tobytes()
        print(place, hashlib.sha256(content).hexdigest(), flush=True)
"""


def killed_rank(shards: Path, rank: int, world: int, start: int, lines: int) -> dict[int, str]:
    """Run one rank as a process of its own and kill it; return the samples it had by then."""
    arguments = [str(shards), *map(str, (rank, world, 2, start))]
    with subprocess.Popen(
        [sys.executable, "-c", RANK, *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        read = list(itertools.islice(process.stdout, lines))
        process.kill()
    return {int(place): digest for place, digest in (line.decode().split() for line in read)}


def test_worlds_that_are_killed_and_grow_read_the_same(
    shards: Path, straight: dict[int, Sample]
) -> None:
    """One rank is killed after batch 2, two after batch 4, three go on: as one that never was."""
    found: dict[int, str] = {}
    for world, start in ((1, 0), (2, 2 * BATCH), (3, 4 * BATCH)):
        for rank in range(world):
            lines = 2 * BATCH // world
            found |= killed_rank(shards, rank, world, start, lines)
    assert sorted(found) == list(range(6 * BATCH))
    for place, digest in found.items():
        image, tokens = straight[place][:2]
        content = image + torch.tensor(tokens).numpy().tobytes()
        assert digest == hashlib.sha256(content).hexdigest()


def test_every_sample_once_an_epoch(straight: dict[int, Sample]) -> None:
    for epoch in range(4):
        keys = [straight[epoch * 22 + place][5] for place in range(22)]
        assert sorted(keys) == [f"{number:04d}.png" for number in range(22)]


def test_epochs_show_other_crops_and_captions(straight: dict[int, Sample]) -> None:
    looks = {(sample[5], sample[0]) for sample in straight.values()}
    texts = {(sample[5], sample[4]) for sample in straight.values()}
    assert len(looks) > 3 * 22
    assert len(texts) > 1.5 * 22


def test_what_a_batch_holds(shards: Path) -> None:
    split = Split.open(config_of(shards), "train")
    (batch,) = take(stream_of(shards), 0, 1)
    assert (batch.images.shape, batch.images.dtype) == ((BATCH, 3, 16, 16), torch.uint8)
    assert (batch.tokens.shape, batch.tokens.dtype) == ((BATCH, 6), torch.int64)
    for row, key in enumerate(batch.keys):
        number = int(key[:4])
        assert batch.captions[row] in captions_of(number)
        assert batch.classes[row] == number % 3
        ids = batch.tokens[row].tolist()
        length = int(batch.lengths[row])
        rest = iter(split.vocabulary.encode(batch.captions[row]))
        assert 1 <= length <= 6
        assert all(word in rest for word in ids[:length])  # a subset in order
        assert not any(ids[length:])
        ground = draw_image(number).getpixel((0, 0))
        corners = batch.images[row][:, [0, -1], [0, -1]].T.tolist()
        assert list(ground) in corners  # type: ignore[arg-type]


def test_seeds_differ(shards: Path, straight: dict[int, Sample]) -> None:
    (batch,) = take(stream_of(shards, seed=4), 0, 1)
    assert samples_of(batch) != {place: straight[place] for place in range(BATCH)}


def test_torchs_generator_is_left_alone(shards: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for workers in (0, 2):
        take(stream_of(shards, workers), 0, 2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_arrives_as_one_sentence(tmp_path: Path, workers: int) -> None:
    shards = make_shards(tmp_path, count=8, size=24)
    path = shards / "train" / "000001.tar"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))
    vouch(shards / "train")
    stream = stream_of(shards, workers)
    with pytest.raises(DataError, match=r"000001\.tar\) cannot be decoded") as caught:
        take(stream, 0, 2)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    del caught
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers(shards: Path) -> None:
    batches = stream_of(shards, workers=2).batches(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_workers_survive_the_signals_that_slurm_sends_to_all(shards: Path, name: str) -> None:
    batches = stream_of(shards, workers=2).batches(0)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.Signals[name])
    starts = [int(next(batches).positions[0]) for _ in range(8)]
    assert starts == [BATCH * number for number in range(1, 9)]
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_workers_end_when_the_main_process_is_killed(shards: Path) -> None:
    program = (
        "import multiprocessing, os, signal\n"
        "from t2i_hpc.config.data import DataConfig\n"
        "from t2i_hpc.data.sampler import RankSlice\n"
        "from t2i_hpc.data.split import Split\n"
        "from t2i_hpc.data.training_data import indexed_loader\n"
        f"config = {config_of(shards, workers=2)!r}\n"
        "split = Split.open(config, 'train')\n"
        "batches = indexed_loader(config, split, 16, 1, RankSlice(4)).batches(0)\n"
        "next(batches)\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(word) for word in killed.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 120
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [worker for worker in workers if is_running(worker)]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_indivisible_batch_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size=24 cannot be divided by 5 ranks"):
        stream_of(shards, rank=0, world=5)


@pytest.mark.parametrize(("resolution", "warnings"), [(16, 0), (20, 0), (24, 1)])
def test_upscaling_is_reported_once(
    shards: Path, caplog: pytest.LogCaptureFixture, resolution: int, warnings: int
) -> None:
    config = config_of(shards)
    split = Split.open(config, "train")
    with caplog.at_level(logging.WARNING):
        for rank in range(2):
            stream = indexed_loader(config, split, resolution, 1, RankSlice(4, rank, 2))
            (batch,) = take(stream, 0, 1)
            assert batch.images.shape[-2:] == (resolution, resolution)
    assert len(caplog.records) == warnings
    if warnings:
        assert "24 px on, below the 28 px that crops are taken from" in caplog.text


@pytest.mark.parametrize(("resolution", "ratio"), [(24, 1.0), (16, 1.5)])
def test_crops_are_windows_of_the_image_scaled_by_the_ratio(
    shards: Path, resolution: int, ratio: float
) -> None:
    """Both cases scale to the stored 24 px, so every crop is a window of the stored image."""
    config = replace(config_of(shards), resize_ratio=ratio, flip=False)
    split = Split.open(config, "train")
    (batch,) = take(indexed_loader(config, split, resolution, 1, RankSlice(8)), 0, 1)
    for image, key in zip(batch.images, batch.keys, strict=True):
        whole = torch.tensor(split.image(int(key[:4]))).permute(2, 0, 1)
        windows = whole.unfold(1, resolution, 1).unfold(2, resolution, 1)
        assert (windows == image[:, None, None]).all(-1).all(-1).all(0).any()


def test_no_flip_gives_the_same_crops_unmirrored(shards: Path) -> None:
    split = Split.open(config_of(shards), "train")
    configs = [replace(config_of(shards), flip=flip) for flip in (True, False)]
    flipped, straight = (
        take(indexed_loader(config, split, RESOLUTION, 1, RankSlice(BATCH)), 0, 1)[0].images
        for config in configs
    )
    same = (straight == flipped).flatten(1).all(1)
    mirrored = (straight == flipped.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0 < same.sum() < BATCH


def test_a_caption_without_known_words(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=4, size=16)
    config, manifest = config_of(shards), Manifest.load(shards / "train")
    split = Split(manifest, Vocabulary(["<end>", "heron"]))
    (batch,) = take(indexed_loader(config, split, 16, 1, RankSlice(BATCH)), 0, 1)
    assert batch.lengths.tolist() == [1] * BATCH
    assert not batch.tokens.any()
