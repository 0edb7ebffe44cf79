"""A partition opens the files of its own samples and reads its own rows, whatever others have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import make_vocabulary
from t2i_hpc.data.build.split_writer import build_partition, build_splits, merge_split
from t2i_hpc.data.split import Split
from tests.data.test_mds_source import write_mds
from tests.data.test_partitions import content
from tests.support.data import captions_of, image_bytes

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
    file: Any = parquet.ParquetFile

    class Noted(file):  # type: ignore[misc]
        def __init__(self, path: Path, **settings: Any) -> None:
            super().__init__(path, **settings)
            self.name = path.name

        def iter_batches(self, *given: Any, **settings: Any) -> Iterator[Any]:
            read.append(self.name)
            yield from super().iter_batches(*given, **settings)

    monkeypatch.setattr(parquet, "ParquetFile", Noted)
    build_partition(config_of(tmp_path, "parquet", partition="2/4"))
    assert set(read) == {"1.parquet"}
