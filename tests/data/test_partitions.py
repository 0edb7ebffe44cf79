"""A split in partitions, on several nodes: the same bytes as a whole build, and nothing missing."""

from __future__ import annotations

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build import workspace
from t2i_hpc.data.build.split_writer import build_partition, build_split, merge_split
from t2i_hpc.data.build.workspace import Partition
from t2i_hpc.data.verification import verify_split
from tests.support.data import make_image_folder


def prepare(tmp_path: Path) -> ShardsConfig:
    """Return a build of 6 shards."""
    images = make_image_folder(tmp_path / "in", range(17))
    return ShardsConfig(
        images=str(images), output=str(tmp_path / "out"), size=24, shard_samples=3, workers=0
    )


def content(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def build(config: ShardsConfig, *partitions: str) -> None:
    for partition in partitions:
        build_partition(replace(config, partition=partition))


@pytest.mark.parametrize(("shards", "count"), [(83, 16), (3, 5), (1, 1), (0, 2), (1_000_000, 7)])
def test_every_shard_belongs_to_one_partition(shards: int, count: int) -> None:
    partitions = [Partition(number, count).of(shards) for number in range(1, count + 1)]
    assert [shard for one in partitions for shard in one] == list(range(shards))
    assert max(map(len, partitions)) - min(map(len, partitions)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/2/3", "-1/4", "1/0", "1 / 2"])
def test_what_is_no_partition_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=f"partition={text} is none: write e.g. 3/16"):
        build(prepare(tmp_path), text)


def test_partitions_in_any_order_and_at_the_same_time(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    expected = replace(config, output=str(tmp_path / "whole"))
    build_split(expected)
    with ThreadPoolExecutor(4) as threads:
        jobs = [replace(config, partition=f"{number}/4") for number in (3, 1, 4, 2)]
        shards = [list(made) for (made,) in threads.map(build_partition, jobs)]
    assert shards == [[3], [0], [4, 5], [1, 2]]
    assert [path.name for path in Path(config.output).iterdir()] == [".train.partial"]
    shutil.rmtree(config.images)  # the source is not needed any more
    built = merge_split(Path(config.output) / "train")
    assert (built.manifest.sample_count, built.rejected) == (17, 0)
    assert content(config.output) == content(expected.output)
    verify_split(built.manifest, lambda _: None)


def test_missing_partitions_are_named(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    target = Path(config.output) / "train"
    build(config, "4/4", "1/4")
    message = r"3 of the 6 shards of .*train are not made, the first is 000001\.tar: build "
    with pytest.raises(DataError, match=message + "partition=2/4, partition=3/4 of it"):
        merge_split(target)
    build(config, "2/4", "3/4")
    (target.parent / ".train.partial" / "split" / "000005.tar").unlink()
    with pytest.raises(DataError, match=r"1 of the 6 shards .* build partition=4/4 of it"):
        merge_split(target)
    build(config, "4/4")
    merge_split(target)
    with pytest.raises(DataError, match="train is merged already"):
        merge_split(target)


def test_partitions_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    build(config, "1/2")
    build(replace(config, quality=50), "2/2")
    with pytest.raises(DataError, match=r"3 of the 6 shards .* build partition=1/2 of it"):
        merge_split(Path(config.output) / "train")


def test_an_interrupted_partition_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepare(tmp_path)
    build(config, "2/2")
    (Path(config.output) / ".train.partial" / "000004.json").unlink()
    capsys.readouterr()
    build(config, "2/2")
    assert "resuming: 2 of 3 shards are done\n" in capsys.readouterr().err


def test_a_whole_build_resumes_what_partitions_have_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepare(tmp_path)
    build(config, "1/2")
    capsys.readouterr()
    build_split(config)
    assert "resuming: 3 of 6 shards are done\n" in capsys.readouterr().err


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train has no partitions to merge: name the split"):
        merge_split(tmp_path / "train")
    (tmp_path / ".train.partial").mkdir()
    with pytest.raises(DataError, match=r"\.train\.partial holds no build"):
        merge_split(tmp_path / "train")


BUSY = "train is being built already"


def test_who_may_work_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "LOCK_SECONDS", 0.0)
    config = prepare(tmp_path)
    output = Path(config.output)
    build(config, "1/2")
    partial = output / ".train.partial"
    for path, kind, refusals in (
        (output / ".train.lock", fcntl.LOCK_EX, [BUSY, BUSY, "are being made"]),  # a whole build
        (
            output / ".train.lock",
            fcntl.LOCK_SH,
            [BUSY, None, "are being made"],
        ),  # another partition
        (output / ".test.lock", fcntl.LOCK_EX, [None, None, "not made"]),  # of another split
        (
            partial / "partition-2-of-2.lock",
            fcntl.LOCK_EX,
            [None, "partition 2/2 .* is being made", None],
        ),
    ):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, kind)
        whole, partition, merge = refusals
        if whole:
            with pytest.raises(DataError, match=whole):
                build_split(config)
        if partition:
            with pytest.raises(DataError, match=partition):
                build(config, "2/2")
        else:
            build(config, "1/2")
        if merge:
            with pytest.raises(DataError, match=merge):
                merge_split(output / "train")
        os.close(descriptor)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    config = prepare(tmp_path)
    build(config, "1/2", "2/2")
    assert merge_split(Path(config.output) / "train").manifest.sample_count == 17


def test_splits_of_one_folder_share_a_vocabulary(tmp_path: Path) -> None:
    config = prepare(tmp_path)
    other = replace(config, images=str(make_image_folder(tmp_path / "b", range(3, 6))))
    build(config, "1/1")
    build(replace(other, split="test"), "1/1")
    merge_split(Path(config.output) / "train")
    with pytest.raises(DataError, match=r"vocabulary\.json has other words than .*build again"):
        merge_split(Path(config.output) / "test")
    build(replace(other, split="test"), "1/1")  # the folder has a vocabulary by now
    assert merge_split(Path(config.output) / "test").manifest.sample_count == 3


def test_two_whole_builds_into_one_folder_share_the_vocabulary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs for train and test at the same time: the second waits until there is a vocabulary."""
    monkeypatch.setattr(workspace, "LOCK_SECONDS", 0.0)
    config = prepare(tmp_path)
    other = replace(
        config, images=str(make_image_folder(tmp_path / "b", range(3, 9))), split="test"
    )
    output = Path(config.output)
    output.mkdir()
    descriptor = os.open(output / ".splits.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # the first build
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(build_split, other)
        while "waiting: another build is writing into" not in capfd.readouterr().err:
            assert not second.done()
        first = replace(config, output=str(tmp_path / "first"))
        shutil.copy(build_split(first).manifest.folder.parent / "vocabulary.json", output)
        os.close(descriptor)
        assert second.result().manifest.sample_count == 6
    words = (tmp_path / "first" / "vocabulary.json").read_bytes()
    assert (output / "vocabulary.json").read_bytes() == words
    assert sorted(path.name for path in output.iterdir()) == ["test", "vocabulary.json"]


def test_locks_hold_where_only_what_is_open_for_writing_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS."""
    flock = fcntl.flock

    def like_nfs(descriptor: int, kind: int) -> None:
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if kind & fcntl.LOCK_EX and access == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", like_nfs)
    monkeypatch.setattr(workspace, "LOCK_SECONDS", 0.0)
    config = prepare(tmp_path)
    Path(config.output).mkdir()
    with (
        workspace.locked(Path(config.output) / ".train.lock", "held"),
        pytest.raises(DataError, match="is being built already"),
    ):
        build_split(config)
    assert build_split(config).manifest.sample_count == 17
