"""What a run trains on: named by its content, refused in one sentence where it is contradictory."""

from __future__ import annotations

import itertools
import multiprocessing
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import Mock

import pytest

from t2i_hpc import train
from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data import loader
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader, open_training_data
from t2i_hpc.data.webdataset_stream import webdataset_loader
from t2i_hpc.training.world import World, joined_world
from tests.support.training import TINY


@pytest.fixture
def indexed(shards: Path) -> DataConfig:
    return DataConfig(path=str(shards), workers=0)


@pytest.fixture
def drawn(shards: Path, indexed: DataConfig) -> DataConfig:
    return replace(indexed, reader="webdataset", urls=[f"{shards}/train/{{000000..000004}}.tar"])


def test_indexed_data_is_its_manifest_and_vocabulary(indexed: DataConfig) -> None:
    data, split = open_training_data(indexed), Split.open(indexed, "train")
    assert data.content == split.manifest.digest
    assert data.identity != data.content
    assert data.epoch("system.epoch_images") == split.count
    assert data.vocabulary.words == split.vocabulary.words
    assert data.summary == "24 samples of demo"
    assert not data.notice
    ours = next(data.loader(16, 3, RankSlice(8, 1, 2)).batches(40))
    theirs = next(indexed_loader(indexed, split, 16, 3, RankSlice(8, 1, 2)).batches(40))
    assert ours.keys == theirs.keys


def test_drawn_data_is_its_list_and_vocabulary(drawn: DataConfig, tmp_path: Path) -> None:
    data = open_training_data(drawn)
    assert data.summary == "5 tars of demo"
    assert "resuming at the very sample" in data.notice
    others = {
        open_training_data(config).identity
        for config in (drawn, replace(drawn, urls=drawn.urls * 2), replace(drawn, path="demo"))
    }
    assert len(others) == 3
    one_by_one = [f"{drawn.path}/train/{number:06d}.tar" for number in range(5)]
    assert open_training_data(replace(drawn, urls=one_by_one)).identity == data.identity
    stream = webdataset_loader(drawn, data.vocabulary, 16, 3, RankSlice(8))
    for ours, theirs in zip(
        itertools.islice(data.loader(16, 3, RankSlice(8)).batches(0), 3),
        stream.batches(0),
        strict=False,
    ):
        assert ours.keys == theirs.keys


def test_an_epoch_nobody_knows_is_asked_for(drawn: DataConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"give system\.epoch_images="):
        open_training_data(drawn).epoch("system.epoch_images")


def test_contradictions_are_refused(indexed: DataConfig, drawn: DataConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.urls= belongs to data\.reader=webdataset"):
        open_training_data(replace(drawn, reader="indexed"))
    with pytest.raises(ConfigurationError, match=r"needs data\.urls="):
        open_training_data(replace(indexed, reader="webdataset"))
    with pytest.raises(DataError, match=r"data\.urls=pipe:… would run a command"):
        open_training_data(replace(drawn, urls=["pipe:cat a"]))
    with pytest.raises(DataError, match=r"data\.path= is missing"):
        open_training_data(replace(drawn, path=""))


def test_loader_processes_are_there_before_the_process_group(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is forked after CUDA or NCCL began cannot use either, nor be relied on."""
    arguments = (
        f"data.path={shards}",
        f"runs={tmp_path}",
        *TINY,
        "data.workers=2",
        "engine.images=8",
    )
    waiting = list[BaseProcess]()

    def joined(config: EngineConfig) -> AbstractContextManager[World]:
        waiting.extend(multiprocessing.active_children())
        return joined_world(config)

    monkeypatch.setattr("t2i_hpc.training.session.joined_world", joined)
    made = Mock(wraps=loader._Worker)
    monkeypatch.setattr(loader, "_Worker", made)
    assert train.COMMAND.main(arguments) == 0
    assert len(waiting) == made.call_count == 2  # and none was started later
    assert not multiprocessing.active_children()


def test_an_error_of_the_data_is_reported_when_all_ranks_have_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = Mock(wraps=joined_world)
    monkeypatch.setattr("t2i_hpc.training.session.joined_world", joined)
    assert train.COMMAND.main([f"data.path={tmp_path / 'none'}", *TINY]) == 2
    assert "there is no folder" in capsys.readouterr().err
    joined.assert_called_once()
