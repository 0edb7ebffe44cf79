"""The command `checkpoints`: a table, a verification, a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t2i_hpc.checkpoints import COMMAND
from t2i_hpc.common.files import append_json_line
from t2i_hpc.runs.checkpoint import read_state
from t2i_hpc.runs.inventory import _age
from tests.commands.trained import make_run
from tests.support.checkpoints import rewrite_state


@pytest.fixture(scope="module")
def made(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo-1a2b3c4d", shards, (100, 200, 300))
    rewrite_state(
        run / "checkpoints" / "0000000200",
        {"origin": {"engine": "DDP of torch 2", "world": 4, "time": "2020-01-01T00:00:00+00:00"}},
    )
    for images, value in ((100, 50.5), (200, 40.25)):
        row = {"images": images, "metric": "FID", "value": value, "n": 10, "checkpoint": ""}
        append_json_line(run / "scores.jsonl", row)
    return run


@pytest.fixture
def damaged(tmp_path: Path, shards: Path) -> Path:
    run = make_run(tmp_path / "run", shards)
    path = run / "checkpoints" / "0000000200" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, where the test is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_with_the_best_marked(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND.main([str(made)]) == 0
    titles, *rows = capsys.readouterr().out.splitlines()
    assert titles.split() == ["images", "step", "size", "age", "ranks", "engine", "score"]
    assert [row.split()[:2] for row in rows] == [["100", "10"], ["200", "20"], ["300", "30"]]
    assert rows[0].endswith("FID 50.5")
    assert rows[1].endswith("DDP of torch 2  FID 40.25 *")
    assert " d      4  DDP" in rows[1]
    assert all("MB" in row for row in rows)


def test_the_table_names_what_cannot_be_used(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged / "checkpoints"
    (folder / "0000000100" / "state.json").unlink()
    (folder / "damaged-0000000050").mkdir()
    assert COMMAND.main([f"run={damaged}", "action=list"]) == 0
    captured = capsys.readouterr().out
    assert "0000000100 has no state.json" in captured
    assert "damaged-0000000050: was found damaged" in captured


def test_verify_reads_everything(
    made: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main(["verify", str(made)]) == 0
    assert capsys.readouterr().out.count("all right") == 3
    assert COMMAND.main(["verify", str(damaged)]) == 2
    captured = capsys.readouterr()
    assert "100 images: all right" in captured.out
    assert "0000000200 is damaged: weights.safetensors" in captured.out
    assert "1 of 2 checkpoints" in captured.err
    assert "(200 images)" in captured.err
    assert (damaged / "checkpoints" / "0000000200").exists()


def test_a_network_is_exported_under_its_own_names(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "generator.safetensors"
    assert COMMAND.main(["export", str(made), "checkpoint=200", f"output={output}"]) == 0
    weights = load_file(read_state(made, 200).weights)
    exported = load_file(output)
    prefix = "generator."
    assert {prefix + name for name in exported} == {n for n in weights if n.startswith(prefix)}
    assert all(torch.equal(value, weights[prefix + name]) for name, value in exported.items())
    with safe_open(output, framework="pt") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "run": "demo-1a2b3c4d",
            "what": "generator",
            "images": "200",
        }


def test_all_networks_of_the_newest_are_exported(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.safetensors"
    assert COMMAND.main(["export", str(made), "what=all", f"output={output}"]) == 0
    weights = load_file(read_state(made, 300).weights)
    exported = load_file(output)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in exported.items())


def test_nothing_is_overwritten(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.safetensors"
    output.write_text("precious")
    assert COMMAND.main(["export", str(made), f"output={output}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "output=x.bin"], "is no .safetensors file"),
        (["export"], "is no .safetensors file"),
        (["export", "output=x.safetensors", "what=generater"], "did you mean 'generator'"),
        (["export", "output=x.safetensors", "checkpoint=7"], "it has: 100, 200, 300"),
        (["action=lists"], "did you mean 'list'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    made: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert COMMAND.main([*arguments, f"run={made}"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_runs_without_checkpoints(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", shards, ())
    assert COMMAND.main([str(run)]) == 0
    assert "has no checkpoint yet" in capsys.readouterr().out
    assert COMMAND.main(["verify", str(run)]) == 2
    assert COMMAND.main([str(tmp_path / "nowhere")]) == 2
    assert COMMAND.main(["verify"]) == 2
    assert "no run is named" in capsys.readouterr().err


def test_ages_are_short() -> None:
    assert _age(None) == ""
    assert _age("2020-01-01T00:00:00+00:00").endswith(" d")
    assert _age("2999-01-01T00:00:00+00:00") == "0 min"
