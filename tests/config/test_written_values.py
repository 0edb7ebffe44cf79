"""Values mean what a person wrote, in a file or on the command line, quoted or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.compose import compose_config, from_yaml, to_yaml
from t2i_hpc.config.tasks import LaunchConfig, TrainConfig
from t2i_hpc.launch import main


def launch_config(folder: Path, text: str, *overrides: str) -> LaunchConfig:
    """Compose with a user-defined cluster."""
    (folder / "cluster").mkdir(exist_ok=True)
    (folder / "cluster" / "ours.yaml").write_text(f"defaults: [slurm]\n{text}\n")
    return compose_config("launch", ["cluster=ours", *overrides], LaunchConfig, folder)


def test_a_users_file_goes_before_the_shipped_name(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "slurm.yaml").write_text("name: slurm\naccount: physics\n")
    config = compose_config("launch", ["cluster=slurm"], LaunchConfig, tmp_path)
    assert (config.cluster.name, config.cluster.account) == ("slurm", "physics")
    assert not recwarn.list


@pytest.mark.parametrize("time", ["24:00:00", "08:00:00", "1:30:00", "90", "1-00:00:00", "030"])
def test_a_time_is_the_time_that_was_written(tmp_path: Path, time: str) -> None:
    bare = launch_config(tmp_path, f"time: {time}")
    quoted = launch_config(tmp_path, f'time: "{time}"')
    given = launch_config(tmp_path, "", f"cluster.time={time}")
    assert [each.cluster.time for each in (bare, quoted, given)] == [time] * 3
    shown = tmp_path / "shown.yaml"
    shown.write_text(to_yaml(bare))
    assert from_yaml(shown, LaunchConfig).cluster.time == time


@pytest.mark.parametrize(
    "text", ["1e5", "012", "0123", "on", "off", "true", "0x10", "1_000", "2.0"]
)
def test_a_name_is_the_name_that_was_written(tmp_path: Path, text: str) -> None:
    assert launch_config(tmp_path, f"account: {text}").cluster.account == text
    assert launch_config(tmp_path, "", f"cluster.account={text}").cluster.account == text
    assert compose_config("train", [f"name={text}"], TrainConfig).name == text


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("[1e5]", ["1e5"]),
        ("[012, on,null_, 2.0]", ["012", "on", "null_", "2.0"]),
        ("""["module load a,b",'x y',1.10]""", ["module load a,b", "x y", "1.10"]),
        ("[module load cuda/12.10, true]", ["module load cuda/12.10", "true"]),
        (r"[a\,b,1_000]", ["a,b", "1_000"]),
        ('["1e5","true"]', ["1e5", "true"]),
        ("[]", []),
    ],
)
def test_a_list_of_text_is_what_was_written(
    tmp_path: Path, written: str, values: list[str]
) -> None:
    assert launch_config(tmp_path, "", f"cluster.setup={written}").cluster.setup == values


def test_other_values_are_what_their_keys_are(tmp_path: Path) -> None:
    text = "gpus_per_node: 08\nmemory_per_node: 1e2\ncheck: off\ntasks_per_node: null\n"
    cluster = launch_config(tmp_path, f"{text}setup: [module load cuda/12.4, 1.10]").cluster
    values: list[Any] = [cluster.gpus_per_node, cluster.memory_per_node, cluster.check]
    assert [*values, cluster.tasks_per_node] == [8, 100.0, False, None]
    assert cluster.setup == ["module load cuda/12.4", "1.10"]


def test_a_number_of_minutes_is_no_time_of_day(tmp_path: Path) -> None:
    """YAML 1.1 would read 1:30:00 as 5400, and the key as minutes."""
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nengine:\n  max_minutes: 1:30:00\n")
    with pytest.raises(ConfigurationError, match=r"engine\.max_minutes"):
        compose_config("train", ["experiment=mine"], TrainConfig, tmp_path)
    mine.write_text("# @package _global_\nengine:\n  max_minutes: 90\n  max_minutes: 80\n")
    with pytest.raises(ConfigurationError, match="the key max_minutes stands there twice"):
        compose_config("train", ["experiment=mine"], TrainConfig, tmp_path)


def test_the_batch_script_asks_for_that_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch_config(tmp_path, "time: 24:00:00")
    assert main([f"--config-dir={tmp_path}", "cluster=ours", "--print-config"]) == 0
    assert "time: '24:00:00'" in capsys.readouterr().out


def test_a_value_with_commas_gets_the_advice_to_quote_it() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        compose_config("train", ["data.path=a,b/shards"], TrainConfig)
    assert """'data.path="a,b/shards"'""" in str(refusal.value)
    assert (
        compose_config("train", ['data.path="a,b/shards"'], TrainConfig).data.path == "a,b/shards"
    )
