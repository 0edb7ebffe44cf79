"""The command line that all commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import DataError
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import ReportConfig, TrainConfig


def command() -> Command[TrainConfig]:
    def work(config: TrainConfig) -> int:
        if config.seed == 13:
            raise DataError("the folder is empty")
        return config.seed

    return Command("train", "Trains.", TrainConfig, work, ("python -m t2i_hpc.train seed=2", "two"))


def test_help_lists_every_key_with_default_and_examples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command().main(["--help"]) == 0
    text = capsys.readouterr().out
    for entry in entries(TrainConfig()):
        assert f"  {entry.key} = " in text
    assert "python -m t2i_hpc.train seed=2" in text
    assert "engine.batch_size = 24 images" in text
    assert "frozen|damsm|joint" in text
    assert "experiment=" in text


def test_print_config_prints_and_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command().main(["--print-config", "seed=13"]) == 0
    assert "seed: 13" in capsys.readouterr().out


def test_the_exit_code_is_the_tasks() -> None:
    assert command().main(["seed=0"]) == 0
    assert command().main(["seed=5"]) == 5


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=13", "t2i_hpc.train: the folder is empty"),
        ("--verbose", "unknown option --verbose"),
        ("sead=1", "did you mean 'seed'"),
        ("--config-dir=/nowhere", "there is no such folder"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(
    override: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command().main([override]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_print_run_prints_the_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    located = Command(
        "train", "T.", TrainConfig, lambda config: 1, ("a",), lambda c: Path(c.runs) / str(c.seed)
    )
    assert located.main(["--print-run", "seed=4"]) == 0
    assert capsys.readouterr().out == "runs/4\n"
    assert (
        Command("report", "R.", ReportConfig, lambda config: 0, ("a",)).main(["--print-run"]) == 2
    )
