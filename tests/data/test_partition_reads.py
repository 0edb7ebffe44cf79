"""A partition opens the files of its own samples and reads its own rows, whatever others have."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build import make_partition
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.sources import SourceSample, webdataset_tars
from t2i_hpc.data.build.split_writer import (
    build_partition,
    build_splits,
    merge_split,
    splits_to_merge,
)
from t2i_hpc.data.build.workers import make_shards
from t2i_hpc.data.split import Split
from tests.data.test_mds_source import write_mds
from tests.data.test_partitions import content
from tests.data.test_webdataset_tars import img2dataset, pack
from tests.support.data import captions_of, image_bytes, make_image_folder

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_note)  # for good: there is no way to remove one


@contextmanager
def opens(suffix: str) -> Iterator[Callable[[], set[str]]]:
    """Note the names of files with a suffix that this process opens."""
    global _opened  # noqa: PLW0603 - audit hooks know nothing else
    noted: list[str] = []
    _opened = noted
    try:
        yield lambda: {Path(path).name for path in noted if path.endswith(suffix)}
    finally:
        _opened = None


def config_of(tmp_path: Path, source: str, **settings: Any) -> ShardsConfig:
    given: dict[str, Any] = {"images": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    given |= {"shard_samples": 3, "workers": 1, "size": 24, **settings}
    return ShardsConfig(source=source, **given)


def whole(config: ShardsConfig, output: Path) -> dict[str, bytes]:
    """Build the same splits at once; return their files."""
    make_vocabulary(output, [Path(config.images)])
    build_splits(replace(config, output=str(output)))
    return content(str(output))


def test_mds(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mds")
    write_mds(tmp_path / "in", 4)
    with pytest.raises(DataError, match="write it first, shards vocabulary"):
        build_partition(replace(config, partition="2/4"))
    make_vocabulary(tmp_path / "out", [tmp_path / "in"])
    with opens(".mds") as names:
        assert build_partition(replace(config, partition="2/4")) == [range(1, 2)]
        assert names() == {"shard.00001.mds"}
    for partition in ("1/4", "4/4", "3/4"):
        build_partition(replace(config, partition=partition))
    merge_split(tmp_path / "out" / "train")
    assert content(config.output) == whole(config, tmp_path / "whole")


def test_mds_with_a_held_out_split(tmp_path: Path) -> None:
    config = config_of(tmp_path, "mds", test_fraction=0.3)
    write_mds(tmp_path / "in", 4)
    make_vocabulary(tmp_path / "out", [tmp_path / "in"])
    for partition in ("2/2", "1/2"):
        build_partition(replace(config, partition=partition))
    found = set()
    for name in ("train", "test"):
        merge_split(tmp_path / "out" / name)
        split = Split.open(DataConfig(path=config.output), name)
        found |= {split.sample(number).key for number in range(split.count)}
    assert found == {f"shard.{n // 3:05d}/{n % 3:06d}" for n in range(12)}
    assert content(config.output) == whole(config, tmp_path / "whole")


@pytest.fixture
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four tars of four samples each; every one is a group, as tars of 256 MB are."""
    monkeypatch.setattr(webdataset_tars, "GROUP_BYTES", 1)
    for tar in range(4):
        numbers = range(4 * tar, 4 * tar + 4)
        pack(tmp_path / "in" / f"{tar:05d}.tar", [part for n in numbers for part in img2dataset(n)])
    make_vocabulary(tmp_path / "out", [tmp_path / "in"])
    return tmp_path / "in"


def build_parts(config: ShardsConfig, *partitions: str) -> None:
    for partition in partitions:
        build_partition(replace(config, partition=partition))


def test_tars(tmp_path: Path, tars: Path) -> None:
    config = config_of(tmp_path, "webdataset")
    with opens(".tar") as names:
        build_parts(config, "2/4")
        assert names() - {"1000000.tar", "1000001.tar"} == {"00001.tar"}
    build_parts(config, "4/4", "1/4")
    target = tmp_path / "out" / "train"
    with pytest.raises(DataError, match=r"1 of the 4 groups of tars .* build partition=3/4 of it"):
        merge_split(target)
    build_parts(config, "3/4")
    built = merge_split(target)
    assert built.manifest.counts.tolist() == [3, 1] * 4
    assert "from 4 tars" in str(built)
    assert content(config.output) == whole(config, tmp_path / "whole")


def test_a_shard_that_is_gone_is_made_again(
    tmp_path: Path, tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, "webdataset")
    build_parts(config, "1/2", "2/2")
    (tmp_path / "out" / ".train.partial" / "split" / "3000001.tar").unlink()
    message = r"1 of the 8 shards .* the first is 3000001\.tar: build partition=2/2 of it"
    with pytest.raises(DataError, match=message):
        merge_split(tmp_path / "out" / "train")
    capsys.readouterr()
    build_parts(config, "2/2")
    assert "resuming: 3 of 4 shards are done\n" in capsys.readouterr().err
    merge_split(tmp_path / "out" / "train")
    assert content(config.output) == whole(config, tmp_path / "whole")


def test_partitions_of_tars_with_other_settings_do_not_mix(tmp_path: Path, tars: Path) -> None:
    config = config_of(tmp_path, "webdataset")
    build_parts(config, "1/2")
    build_parts(replace(config, quality=50), "2/2")
    with pytest.raises(DataError, match=r"2 of the 4 groups of tars .* build partition=1/2 of it"):
        merge_split(tmp_path / "out" / "train")


def test_rejects_of_all_tars_count_together(tmp_path: Path, tars: Path) -> None:
    (tars / "00001.tar").write_bytes((tars / "00001.tar").read_bytes()[:3000])
    config = config_of(tmp_path, "webdataset", max_rejected=0.2)
    build_parts(config, "1/2", "2/2")
    with pytest.raises(
        DataError, match=r"1 of 13 samples were rejected, more than the 0 of max_rejected=0"
    ):
        merge_split(tmp_path / "out" / "train", 0.0)
    assert merge_split(tmp_path / "out" / "train").rejected == 1


@pytest.mark.parametrize(
    "settings",
    [{"limit": 6}, {"test_fraction": 0.4}, {"filter": "len(url) == 1", "max_rejected": 0.0}],
)
def test_choices_among_tars(tmp_path: Path, tars: Path, settings: dict[str, Any]) -> None:
    config = config_of(tmp_path, "webdataset", **settings)
    build_parts(config, "2/2", "1/2")
    for target in splits_to_merge(tmp_path / "out"):
        merge_split(target)
    assert content(config.output) == whole(config, tmp_path / "whole")
    train = Split.open(DataConfig(path=config.output), "train")
    assert train.count == {"limit": 6, "filter": 16}.get(next(iter(settings)), train.count)


def test_a_filter_of_tars_that_no_sample_answers(tmp_path: Path, tars: Path) -> None:
    with pytest.raises(ConfigurationError, match="no sample says 'aesthetic'"):
        build_splits(config_of(tmp_path, "webdataset", filter="aesthetic > 5"))


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in").mkdir()
    for file in range(4):
        rows = [
            {"jpg": image_bytes(n, "JPEG"), "caption": captions_of(n)[0]}
            for n in range(3 * file, 3 * file + 3)
        ]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in" / f"{file}.parquet")
    make_vocabulary(tmp_path / "out", [tmp_path / "in"])
    read: list[str] = []

    class Noted(parquet.ParquetFile):  # type: ignore[misc, name-defined]
        def __init__(self, path: Path, **settings: Any) -> None:
            super().__init__(path, **settings)
            self.name = path.name

        def iter_batches(self, *given: Any, **settings: Any) -> Iterator[Any]:
            read.append(self.name)
            yield from super().iter_batches(*given, **settings)

    monkeypatch.setattr(parquet, "ParquetFile", Noted)
    build_partition(config_of(tmp_path, "parquet", partition="2/4"))
    assert set(read) == {"1.parquet"}


@pytest.mark.parametrize("metadata", [True, False])
def test_of_a_list_a_partition_keeps_its_own_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: bool
) -> None:
    make_image_folder(tmp_path / "in", range(120, 137), metadata=metadata)
    held: list[int] = []

    def noted(*given: Any) -> None:
        gc.collect()
        mine = [one for one in gc.get_objects() if type(one) is SourceSample]
        held.append(sum(one.path.is_relative_to(tmp_path) for one in mine))
        make_shards(*given)

    monkeypatch.setattr(make_partition, "make_shards", noted)
    build_partition(config_of(tmp_path, "folder", partition="2/4"))
    assert held == [6]  # of two shards
