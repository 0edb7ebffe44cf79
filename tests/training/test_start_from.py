"""A run that begins with the weights of another: what is taken, recorded, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_hpc.common.errors import UserError
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.split import Split
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.runs.run_directory import open_run, run_folder
from t2i_hpc.systems import build_system
from t2i_hpc.training.first_weights import FirstWeights, given_networks
from tests.commands.trained import make_run, write_encoders
from tests.support.data import make_shards
from tests.support.training import TINY, only_run, train_tiny

TEXT, IMAGE = "text_encoder", "image_encoder"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with untrained weights, and encoders beside it."""
    folder = tmp_path_factory.mktemp("source")
    run = make_run(folder / "run", make_shards(folder, count=4))
    write_encoders(run)
    return run


def settings(source: Path, *more: str) -> TrainConfig:
    """The settings of a training that fits `source`."""
    sizes = ("system.noise_width=8", "system.text_encoder.width=8", "engine.images=8")
    embeddings = "system.text_encoder.embedding_width=6"
    data = f"data.path={source.parent / 'shards'}"
    return compose_config(
        "train", [*TINY, *sizes, embeddings, data, f"start_from={source}", *more], TrainConfig
    )


def plan(config: TrainConfig, words: Vocabulary | None = None) -> FirstWeights:
    vocabulary = words or Split.open(config.data, "train").vocabulary
    return FirstWeights.plan(config, build_system(config.system, vocabulary.size), vocabulary)


def refused(source: Path, *more: str) -> str:
    with pytest.raises(UserError) as refusal:
        plan(settings(source, *more))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_run_begins_with_the_weights_of_another_and_resumes_by_itself(
    tmp_path: Path, shards: Path
) -> None:
    """On data with other words; the other run is trained on meanwhile."""
    known = Vocabulary.load(shards / "vocabulary.json")
    first = tmp_path / "first"
    train_tiny(shards, first, "engine.images=4")
    begun = only_run(first)

    other = make_shards(tmp_path, count=4)
    (other / "vocabulary.json").rename(tmp_path / "words.json")
    numbers = [known.words[0], "heron", *known.words[:0:-1]]
    Vocabulary(numbers).save(other / "vocabulary.json")
    for manifest in other.glob("*/manifest.json"):  # built with these words, it would say so
        text = manifest.read_text()
        old, new = (
            Vocabulary.load(p).sha256 for p in (tmp_path / "words.json", other / "vocabulary.json")
        )
        manifest.write_text(text.replace(old, new))
    start = (f"start_from={begun}", "seed=2", "engine.batch_size=2")
    done = train_tiny(other, tmp_path / "second", *start, "engine.images=2")
    assert f"starting from {begun} after 4 images: discriminator, generator" in done.stdout
    assert "1 are new and begin at random (heron)" in done.stdout
    run = only_run(tmp_path / "second")
    taken, given = (load_all(r, n) for r, n in ((run, 0), (begun, 4)))
    table, rows = (each.pop("text_encoder.embedding.weight") for each in (taken, given))
    assert all(torch.equal(taken[name], value) for name, value in given.items())
    assert torch.equal(table[2:], rows.flip(0)[:-1])
    assert torch.equal(table[0], rows[0])
    info = json.loads((run / "run.json").read_text())["start_from"]
    assert info["images"] == 4
    assert info["new_words"] == 1

    train_tiny(shards, first, "engine.images=8")
    again = train_tiny(other, tmp_path / "second", *start, "engine.images=4")
    assert "resuming at step 1, 2 images seen" in again.stdout
    assert "starting from" not in again.stdout
    assert f"start_from={begun} holds other weights now" in again.stdout
    assert json.loads((run / "run.json").read_text())["start_from"] == info
    assert only_run(tmp_path / "second") == run


def load_all(run: Path, images: int) -> dict[str, torch.Tensor]:
    files = sorted(folder_of(run, images).glob("[wf]*.safetensors"))
    return {name: value for path in files for name, value in load_file(path).items()}


def test_what_a_run_starts_from_names_it(source: Path) -> None:
    folders = {
        run_folder(settings(source, *more), "data")
        for more in (
            (),
            (f"start_from={folder_of(source, 200)}",),  # the newest
            (f"start_from={folder_of(source, 100)}",),
            ("start_from_networks=[generator]",),
            ("start_from=",),
        )
    }
    assert len(folders) == 4


def test_weights_are_loaded_whole_or_by_network(source: Path) -> None:
    config = settings(source, "start_from_networks=[generator]", "system.ema_images=16")
    words = Split.open(config.data, "train").vocabulary
    system = build_system(config.system, words.size)
    before = {name: value.clone() for name, value in system.modules.state_dict().items()}
    first = FirstWeights.plan(config, system, words)
    first.load(system)
    stored, now = load_all(source, 200), system.modules.state_dict()
    for name, value in now.items():
        network, _, rest = name.partition(".")
        taken = network in ("generator", "generator_ema")
        assert torch.equal(value, stored[f"generator.{rest}"] if taken else before[name]), name
    assert first.others == ("discriminator", TEXT)
    assert first.words is None


def test_a_file_of_one_network_and_settings_that_name_files(source: Path) -> None:
    file = source / "text.safetensors"
    weights = f"system.text_encoder.weights={file}"
    assert given_networks(settings(source)) == {"generator", "discriminator", TEXT}
    assert given_networks(settings(source, weights)) == {"generator", "discriminator"}
    save_file(load_file(file), source / f"{TEXT}.safetensors")  # as pre-training names it
    alone = plan(settings(source, f"start_from={source / TEXT}.safetensors"))
    assert alone.networks == (TEXT,)
    assert "both name weights" in refused(source, weights, f"start_from_networks=[{TEXT}]")


def test_what_cannot_be_started_from(source: Path, tmp_path: Path) -> None:
    mismatch = refused(source, "system.generator_width=4")
    assert "generator.blocks.0" in mismatch
    assert "and" in mismatch
    assert f"start_from_networks=[discriminator,{TEXT}]" in mismatch
    assert "did you mean 'generator'" in refused(source, "start_from_networks=[generators]")
    assert f"has no {IMAGE}; it has" in refused(
        source,
        "system.damsm.weight=1",
        "system.image_encoder.name=efficientnet_lite0",
        f"start_from_networks=[{IMAGE}]",
    )
    assert "there is no such folder" in refused(source, f"start_from={tmp_path}/no")
    assert "it has no config.yaml" in refused(source, f"start_from={tmp_path}")
    torch.save({}, tmp_path / "netG.pth")
    assert "t2i_hpc.convert experiment=" in refused(source, f"start_from={tmp_path / 'netG.pth'}")
    assert "there is no such file" in refused(source, f"start_from={tmp_path / 'a.safetensors'}")


def test_another_resolution_takes_what_has_the_same_shapes(source: Path) -> None:
    """The networks of images have a block for each doubling; encoders and fewer blocks fit."""
    larger = "system.resolution=128"
    error = refused(source, larger)
    assert f"start_from_networks=[{TEXT}]" in error
    assert "generator.blocks" in error
    assert plan(settings(source, larger, f"start_from_networks=[{TEXT}]")).networks == (TEXT,)


def test_words_of_a_file_must_be_known(source: Path) -> None:
    state = json.loads((folder_of(source, 200) / "state.json").read_text())
    assert state["origin"].get("vocabulary", "") == ""
    file = source.parent / "all.safetensors"
    words = Vocabulary.load(source.parent / "shards" / "vocabulary.json")
    save_file(load_all(source, 200), file, {"what": "all", "vocabulary": words.sha256})
    config = settings(source, f"start_from={file}")
    assert plan(config).networks == ("discriminator", "generator", TEXT)
    with pytest.raises(UserError, match=r"another vocabulary.* name the run itself"):
        plan(config, Vocabulary([words.words[0], *words.words[:0:-1]]))
    assert list_checkpoints(source)[-1] == 200
    assert open_run(source).start_from == ""
