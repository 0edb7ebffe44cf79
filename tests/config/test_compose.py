"""Composition: types, ranges, suggestions, and that every shipped experiment fits the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from omegaconf import DictConfig

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import resource
from t2i_hpc.config import compose as compose_module
from t2i_hpc.config.compose import compose_config, from_yaml, to_yaml
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.config.tasks import TASK_SCHEMAS, TrainConfig

EXPERIMENTS = sorted(path.stem for path in (resource("configs") / "experiment").glob("*.yaml"))


def train_config(*overrides: str) -> TrainConfig:
    return compose_config("train", overrides, TrainConfig)


@pytest.mark.parametrize("task", sorted(TASK_SCHEMAS))
def test_every_task_composes_without_overrides(task: str) -> None:
    assert isinstance(compose_config(task, [], TASK_SCHEMAS[task]), TASK_SCHEMAS[task])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_fits_the_schema_and_a_gpu(experiment: str) -> None:
    config = train_config(f"experiment={experiment}", "engine=gpu")
    assert (config.name, config.engine.precision) == (experiment, "bf16")
    assert config.engine.channels_last and config.engine.compile == ["all"]


def test_overrides_go_over_groups_and_reach_the_systems_own_dataclass() -> None:
    config = train_config("experiment=demo", "system.masks=3", "engine.batch_size=8", "seed=7")
    assert isinstance(config.system, SSAGANConfig)
    assert (config.system.masks, config.engine.batch_size, config.seed) == (3, 8, 7)
    assert config.data.path == "demo"


def test_files_are_composed_once_and_keep_nothing_of_what_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def counted(name: str, overrides: list[str]) -> DictConfig:
        calls.append(name)
        return hydra_compose(name, overrides=overrides)

    monkeypatch.setattr("t2i_hpc.config.compose.compose", counted)
    compose_module._shipped.cache_clear()
    first = train_config("experiment=demo", "seed=7", "engine.profile=[3,5]", "name=1e5")
    second = train_config("experiment=demo")
    assert calls == ["task_train"]
    assert (first.seed, first.name, first.engine.profile) == (7, "1e5", [3, 5])
    assert (second.seed, second.name, second.engine.profile) == (1, "demo", [])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sede=2", "unknown key 'sede' for the task 'train': did you mean 'seed'"),
        ("system.dmasm.weight=1", "did you mean 'system.damsm.weight'"),
        ("expriment=demo", "did you mean 'experiment'"),
        ("data=cocoo", "data=cocoo is not offered: did you mean 'coco'"),
        ("system.resolution=100", "system.resolution=100 is not offered"),
        ("system.mismatch=rol", "did you mean 'roll'"),
        ("engine.batch_size=1", "too small: at least 2 images"),
        ("engine.batch_size=many", "engine.batch_size"),
        ("system.damsm=3", "system.damsm is a section"),
        ("data.max_tokens=[1", "cannot read 'data.max_tokens=[1'"),
        ("evaluation=demo", "does not belong to the task 'train'"),
        ("seed", "settings are written key=value"),
        ("+seed=3", "settings are written key=value"),
    ],
)
def test_a_wrong_override_is_refused_with_a_hint(override: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        train_config(override)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_its_yaml(tmp_path: Path) -> None:
    config = train_config("experiment=demo", "system.text_encoder.training=damsm")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(path, TrainConfig) == config


def test_a_damaged_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("system: {name: unheard_of}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"config\.yaml"):
        from_yaml(path, TrainConfig)


def test_a_user_folder_adds_experiments(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nseed: 11\n", encoding="utf-8"
    )
    config = compose_config("train", ["experiment=mine"], TrainConfig, tmp_path)
    assert (config.name, config.seed) == ("mine", 11)
    with pytest.raises(ConfigurationError, match="mien"):
        compose_config("train", ["experiment=mien"], TrainConfig, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a,b", "a=b", "a[b]", "a(b", "a{b}", "it's", 'a"b', "a b", "a${b}", "a\\b", 'a\\"b', "end\\"],
)
def test_such_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 11\n")
    assert compose_config("train", ["experiment=mine"], TrainConfig, folder).seed == 11


@pytest.mark.parametrize(
    "name", ["data.resize_ratio", "data.retry_seconds", "data.cache_gigabytes"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_settings_are_finite(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value} is not a finite number"):
        train_config(f"{name}={value}")


@pytest.mark.parametrize(
    ("override", "urls"),
    [
        ("[tars/{000..127}.tar]", ["tars/{000..127}.tar"]),
        ("[s3://b/{a,b}/{0..9}.tar, c d.tar]", ["s3://b/{a,b}/{0..9}.tar", "c d.tar"]),
        ("[https://h/x.tar?a=1&b=(2)]", ["https://h/x.tar?a=1&b=(2)"]),
    ],
)
def test_urls_with_braces_are_taken_in_lists(override: str, urls: list[str]) -> None:
    config = compose_config("train", ["experiment=demo", f"data.urls={override}"], TrainConfig)
    assert config.data.urls == urls
