"""Damaged and forged tars: refused in words, or read as every other tool reads them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import SourceSample
from t2i_hpc.data.build.sources.webdataset_tars import read_webdataset
from t2i_hpc.data.format.tars import SampleFiles, index_tar, members_of, scan, write_tar
from tests.support.data import image_bytes
from tests.support.mutations import BLOCK, Mutation, fuzz, mutate, mutations, refused

INDEXED, FOREIGN = 4000, 2000


def end_early(tar: bytes) -> bytes:
    """Leave out most of the empty blocks at the end, where changes are dull."""
    blocks = -(-len(tar.rstrip(b"\0")) // BLOCK)
    return tar[: (blocks + 3) * BLOCK]


def ours(path: Path) -> bytes:
    records = [
        SampleFiles(
            f"{n}-x", image_bytes(n, width=8, height=8), "png", {"key": f"k{n}", "captions": []}
        )
        for n in range(2)
    ]
    write_tar(path, records)
    return end_early(path.read_bytes())


def pack(form: int) -> bytes:
    """A tar with long names and fractions of seconds, which pax and GNU write as headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for n in range(2):
            for suffix, content in ("jpg", image_bytes(n, "JPEG", 8, 8)), ("txt", b"a caption"):
                info = tarfile.TarInfo(f"{n}{'long' * 30}.{suffix}")
                info.size, info.mtime = len(content), 0.5
                tar.addfile(info, io.BytesIO(content))
    return end_early(stream.getvalue())


def others(path: Path) -> list[tuple[str, int, int]]:
    """What Python's own tarfile sees."""
    with tarfile.open(path, "r:") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]


def test_4000_damaged_shards_are_indexed_as_tarfile_reads_them_or_refused(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.tar", [0, 0]
    whole = ours(path)

    @fuzz(INDEXED)
    @given(mutations("field"))
    def check(changes: list[Mutation]) -> None:
        path.write_bytes(mutate(whole, changes))
        no = refused(lambda: index_tar(path))
        seen[no] += 1
        if not no:
            found = [(member.name, member.offset_data, member.size) for member in members_of(path)]
            assert found == others(path)

    check()
    assert sum(seen) >= INDEXED
    assert min(seen) > INDEXED // 50  # neither all whole nor all refused


def usable(config: ShardsConfig) -> list[SourceSample]:
    """Return all samples of a folder of tars; refuse one of which something is left out."""
    groups = read_webdataset(config).groups
    assert groups is not None
    samples = list(groups.read(0).samples)
    for sample in samples:
        if sample.unfit is not None:
            raise DataError(sample.unfit.reason)
    return samples


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_2000_damaged_foreign_tars_are_read_or_refused(tmp_path: Path, form: int) -> None:
    path, seen = tmp_path / "a.tar", [0, 0]
    whole = pack(form)
    config = ShardsConfig(source="webdataset", images=str(tmp_path), output="x")

    @fuzz(FOREIGN)
    @given(mutations("field"))
    def check(changes: list[Mutation]) -> None:
        path.write_bytes(mutate(whole, changes))
        no = refused(lambda: [sample.read() for sample in usable(config)])
        seen[no] += 1
        if not no:
            members = scan(path).members
            found = [(member.name, member.offset_data, member.size) for member in members]
            assert found == [entry for entry in others(path) if not entry[0].endswith("/")]

    check()
    assert sum(seen) >= FOREIGN
    assert min(seen) > FOREIGN // 50
