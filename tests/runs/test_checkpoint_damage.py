"""Damage of every kind: the checkpoint before is taken, or one sentence says why not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.runs.checkpoint import (
    DamagedCheckpointError,
    choose_checkpoint,
    newest_checkpoint,
    open_checkpoint,
)
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.checkpoints.recovery import recover
from tests.support.checkpoints import make_checkpoints, rewrite_state, saver_of, stepped

FILES = ("weights.safetensors", "optimizers.safetensors", "state.json")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one checkpoint of 8 images."""
    (folder,) = make_checkpoints(tmp_path_factory.mktemp("run"), 8)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def run(tmp_path: Path, pristine: dict[str, bytes]) -> Path:
    """A run whose only checkpoint can be damaged."""
    folder = tmp_path / "checkpoints" / "0000000008"
    folder.mkdir(parents=True)
    for name, content in pristine.items():
        (folder / name).write_bytes(content)
    return tmp_path


def offsets(size: int, count: int = 50) -> list[int]:
    """Places of a file: its first bytes (the head's length), the head, the numbers, the end."""
    draw = random.Random(0)
    drawn = [draw.randrange(size) for _ in range(count)]
    return sorted({*range(10), 100, size // 2, size - 1, *drawn})


@pytest.mark.parametrize("name", FILES)
def test_one_bit_anywhere_is_seen(run: Path, pristine: dict[str, bytes], name: str) -> None:
    path = run / "checkpoints" / "0000000008" / name
    open_checkpoint(run, 8)
    for number, place in enumerate(offsets(len(pristine[name]))):
        content = bytearray(pristine[name])
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match="0000000008"):
            open_checkpoint(run, 8)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_length_is_seen(run: Path, pristine: dict[str, bytes], name: str) -> None:
    path, size = run / "checkpoints" / "0000000008" / name, len(pristine[name])
    for length in (0, 1, 7, 8, 9, size // 3, size - 2):
        path.write_bytes(pristine[name][:length])
        with pytest.raises(DamagedCheckpointError, match="0000000008"):
            open_checkpoint(run, 8)
    path.write_bytes(pristine[name] + b"x")
    with pytest.raises(DamagedCheckpointError, match="0000000008"):
        open_checkpoint(run, 8)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", [None, "folder"])
def test_a_missing_file_is_seen(run: Path, name: str, other: str | None) -> None:
    path = run / "checkpoints" / "0000000008" / name
    path.unlink()
    if other:
        path.mkdir()
    with pytest.raises(DamagedCheckpointError, match=name.split(".", maxsplit=1)[0]):
        open_checkpoint(run, 8)


def honest(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite_state(folder, changes)


def forged(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite_state(folder, changes, honest=False)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (forged(progress={"images_seen": 8, "step": 3, "seconds": 1.5}), "not what was written"),
        (forged(more=1), "not what was written"),
        (forged(format=2), "not what was written"),
        (forged(format="2"), "not what was written"),
        (forged(format=None), "not what was written"),
        (forged(progress=None), "is damaged"),
        (honest(progress={"images_seen": 12, "step": 3, "seconds": 1.5}), "not what was written"),
        (honest(progress={"images_seen": 8, "step": 3, "hours": 1.5}), "is damaged"),
        (honest(format=4), "format 4, and this version of t2i_hpc reads format 3"),
    ],
)
def test_an_edited_state_is_never_taken(run: Path, edit: Callable[[Path], None], said: str) -> None:
    edit(run / "checkpoints" / "0000000008")
    with pytest.raises(RunError, match=said):
        open_checkpoint(run, 8)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"1", b"\xff", b"[" * 100_000])
def test_a_state_of_another_kind(run: Path, content: bytes) -> None:
    (run / "checkpoints" / "0000000008" / "state.json").write_bytes(content)
    with pytest.raises(DamagedCheckpointError):
        open_checkpoint(run, 8)


def test_an_old_format_is_no_damage_and_nothing_is_set_aside(run: Path) -> None:
    folder = run / "checkpoints" / "0000000008"
    (folder / "state.json").write_text(
        '{"format": 1, "progress": {"images_seen": 8, "step": 2, "seconds": 1}, "files": {}}'
    )
    make_checkpoints(run, 4)
    with pytest.raises(RunError, match="is of format 1"):
        recover(run)
    assert list_checkpoints(run) == [4, 8]


def test_the_one_before_is_taken_and_the_damaged_one_kept(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoints(run, 0, 4)
    path = run / "checkpoints" / "0000000008" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    taken = recover(run)
    assert taken is not None
    assert taken.progress.images_seen == 4
    assert list_checkpoints(run) == [0, 4]
    assert "0000000008 is damaged" in caplog.text
    aside = run / "checkpoints" / "damaged-0000000008"
    assert aside.name in caplog.text
    assert sorted(file.name for file in aside.iterdir()) == sorted(FILES)


def test_a_second_damaged_one_does_not_replace_the_first(run: Path) -> None:
    make_checkpoints(run, 4)
    (run / "checkpoints" / "0000000008" / "state.json").unlink()
    recover(run)
    (folder,) = make_checkpoints(run, 8)
    (folder / "state.json").unlink()
    recover(run)
    assert {path.name for path in (run / "checkpoints").glob("damaged-*")} == {
        "damaged-0000000008",
        "damaged-0000000008-2",
    }


def test_damaged_ones_alone_never_begin_the_run_anew(run: Path) -> None:
    (run / "checkpoints" / "0000000008" / "state.json").unlink()
    for _ in range(2):  # the next session finds nothing but what was set aside
        with pytest.raises(RunError, match=r"damaged checkpoints alone.*damaged-0000000008"):
            recover(run)


def test_who_only_reads_sets_nothing_aside(run: Path) -> None:
    (run / "checkpoints" / "0000000008" / "state.json").unlink()
    with pytest.raises(RunError, match="damaged checkpoints alone"):
        choose_checkpoint(run, "latest")
    make_checkpoints(run, 4)
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.progress.images_seen == 4
    assert list_checkpoints(run) == [4, 8]


def test_what_cannot_be_read_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoints(run, 4)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RunError, match=r"cannot be read: .*Permission denied"):
        recover(run)
    assert list_checkpoints(run) == [4, 8]


def rename(tensors: dict[str, Tensor]) -> None:
    name = sorted(tensors)[3]
    tensors[f"{name}_too"] = tensors.pop(name)


def leave_out(tensors: dict[str, Tensor]) -> None:
    del tensors[next(n for n in sorted(tensors) if "discriminator" in n)]


def add(tensors: dict[str, Tensor]) -> None:
    name = next(n for n in sorted(tensors) if "discriminator" in n)
    tensors[name.replace("discriminator", "judge", 1)] = tensors[name].clone()


def reshape(tensors: dict[str, Tensor]) -> None:
    name = next(n for n, value in sorted(tensors.items()) if value.dim() == 4)
    tensors[name] = tensors[name].flatten().clone()


def halve(tensors: dict[str, Tensor]) -> None:
    name = next(n for n, value in sorted(tensors.items()) if value.dim() == 4)
    tensors[name] = tensors[name].half()


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("change", [rename, leave_out, add, reshape, halve])
def test_tensors_that_do_not_fit_are_never_loaded(
    run: Path, name: str, change: Callable[[dict[str, Tensor]], None]
) -> None:
    folder = run / "checkpoints" / "0000000008"
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    rewrite_state(folder, {})
    system, strategy = stepped(0)
    before = {key: value.clone() for key, value in system.modules.state_dict().items()}
    with pytest.raises(RunError, match=f"{name} does not fit this system: "):
        saver_of(run, strategy).resume()
    assert strategy.read_moments() == {}
    assert all(torch.equal(v, before[n]) for n, v in system.modules.state_dict().items())


@pytest.mark.parametrize("name", FILES[:2])
def test_no_tensors_at_all_with_the_right_hash(run: Path, name: str) -> None:
    folder = run / "checkpoints" / "0000000008"
    (folder / name).write_bytes(b"no tensors here")
    rewrite_state(folder, {})
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        saver_of(run, stepped(0)[1]).resume()
