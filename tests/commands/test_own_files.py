"""Mistakes in user-defined configuration files and names are refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.checkpoints import COMMAND as CHECKPOINTS
from t2i_hpc.config.grammar import parse
from t2i_hpc.train import COMMAND as TRAIN

HEAD = "# @package _global_\ndefaults:\n  - demo\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "engine:\n  imagez: 24\n", "Key 'imagez' not in 'EngineConfig'"),
        (HEAD + "engine:\n  images: many\n", "'many'"),
        ("a: b: c\n", "is no YAML: mapping values are not allowed here"),
        ("defaults:\n  - demo\nseed: 2\n", "begins with the line # @package _global_"),
    ],
)
def test_a_user_defined_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(text)
    assert TRAIN.main(["--config-dir", str(tmp_path), "experiment=own", "--print-config"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment=demo", "name=../x"], "is no name of a run"),
        (["experiment=demo", "name=a/b"], "holds a /"),
        (["experiment=demo", "--config-dir"], "there is no such folder"),
        (["experiment=demo", "data.test_split=tset"], "no split 'tset': did you mean 'test'?"),
    ],
)
def test_names_that_lead_nowhere(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TRAIN.main([f"runs={tmp_path}", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    arguments = ["experiment=demo", f"runs={tmp_path}/file", "engine.images=24", "engine.threads=1"]
    assert TRAIN.main(arguments) == 2
    assert "Not a directory; name another place" in capsys.readouterr().err


def test_a_word_that_is_no_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert CHECKPOINTS.main(["verfy", "runs/x"]) == 2
    assert "actions: list, verify, export" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["blöd", "p(1)", "a=b", "two arguments"])
def test_a_value_that_hydra_has_no_grammar_for(value: str) -> None:
    (override,) = parse([f"images={value}"])
    assert override.value() == value
