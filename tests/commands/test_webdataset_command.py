"""Training on tars without a manifest, and on shards that lie on a server."""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.common.files import read_json_lines
from tests.support.servers import serving
from tests.support.training import TINY, only_run, run_task, train_tiny


def tars_of(shards: Path) -> tuple[str, str]:
    return ("data.reader=webdataset", f'data.urls=["{shards}/train/{{000000..000004}}.tar"]')


def test_tars_without_a_manifest_train_and_go_on(shards: Path, tmp_path: Path) -> None:
    for images in (4, 8):
        done = train_tiny(shards, tmp_path, f"engine.images={images}", *tars_of(shards))
        assert "these do not hold: an exact order" in done.stdout
        assert "5 tars of demo" in done.stdout
    rows = read_json_lines(only_run(tmp_path) / "metrics.jsonl")
    assert [row["images"] for row in rows] == [4, 8]


def test_training_from_a_server_is_the_run_of_the_folder(shards: Path, tmp_path: Path) -> None:
    here = train_tiny(shards, tmp_path / "here", "engine.images=8")
    assert "do not hold" not in here.stdout
    arguments = (
        *TINY,
        "engine.images=8",
        f"runs={tmp_path / 'there'}",
        f"data.cache={tmp_path}/cache",
    )
    with serving(shards) as server:
        there = run_task("train", f"data.path={server.url}", *arguments)
    assert there.returncode == 0, there.stderr
    runs = [only_run(tmp_path / place) for place in ("here", "there")]
    assert runs[0].name == runs[1].name
    losses = [[row["losses"] for row in read_json_lines(run / "metrics.jsonl")] for run in runs]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_encoders_need_the_length_of_an_epoch(shards: Path) -> None:
    done = run_task("pretrain", "system=damsm", f"data.path={shards}", *tars_of(shards))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "give system.epoch_images=" in done.stderr
