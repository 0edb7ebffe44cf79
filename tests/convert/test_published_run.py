"""From a file of each published layout to a run: generated from, scored, trained on, exported."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc import load_run
from t2i_hpc.checkpoints import COMMAND as CHECKPOINTS
from t2i_hpc.common.errors import UserError
from t2i_hpc.common.files import read_json_lines, sha256_of_file
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import ConvertConfig, TrainConfig
from t2i_hpc.convert import published_run
from t2i_hpc.convert.__main__ import COMMAND
from t2i_hpc.convert.published_run import read_published_run
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.generate import COMMAND as GENERATE
from t2i_hpc.runs.inputs import run_vocabulary
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.status import COMMAND as STATUS
from t2i_hpc.systems.clip_gan import CLIPGAN
from tests.golden.case import case, published
from tests.golden.clip_folder import write_golden_clip
from tests.support.training import ENGINE, only_run, run_task

CPU = torch.device("cpu")
NARROW = ("system.generator_width=4", "system.discriminator_width=4")
ENCODERS = {"text_encoder": "damsm text"}
DF_GAN = {"generator": "dfgan G", "discriminator": "dfgan D", "head": "dfgan C", **ENCODERS}
State = dict[str, Any]


def plain(state: State) -> State:
    return state


def parallel(state: State) -> State:
    """As DataParallel saves a network."""
    return {f"module.{name}": value for name, value in state.items()}


@dataclass(frozen=True)
class Layout:
    """What was published of a system.

    Attributes:
        experiment: that the files belong to.
        files: golden networks, a case and a part, by `convert`'s settings.
        settings: that make the experiment as narrow as the golden case.
        image: the case's stored image of noise, sentence and words.
        gain: of the generator's values.
        save: turns a network's state dict into what the file holds.
        epoch: of one file that holds all networks beside their optimizers, 0: one file each.
        missing: networks that nobody gives.
    """

    experiment: str
    files: Mapping[str, str]
    settings: tuple[str, ...] = (*NARROW, "system.damsm.weight=0")
    image: str = "image"
    gain: float = 1.0
    save: Callable[[State], State] = plain
    epoch: int = 0
    missing: tuple[str, ...] = ()

    def state(self, key: str) -> State:
        file, *part = self.files[key].split()
        return case(file).weights(*part, gain=self.gain if key == "generator" else 1.0)


def staged(name: str, damsm: bool = False) -> Layout:
    sides = {f"discriminator{64 << n}": f"{name} D {n}" for n in range(3)}
    encoders = {**ENCODERS, "image_encoder": "damsm image"} if damsm else ENCODERS
    return Layout(
        "cub_attngan2" if name == "attngan" else "cub_dmgan",
        {"generator": f"{name} G", **sides, **encoders},
        (
            "system.generator_width=8",
            "system.discriminator_width=4",
            "system.sample_condition=false",
            *(() if damsm else ("system.damsm.weight=0",)),
        ),
        image="image2",
    )


LAYOUTS = {
    "ssa_gan": Layout(
        "cub_ssagan",
        {"generator": "ssagan_ngf4 G", **ENCODERS},
        image="G.eval.image",
        save=parallel,
        missing=("discriminator",),
    ),
    "df_gan": Layout(
        "cub_dfgan", DF_GAN, (*NARROW, "system.truncation=0"), "image", gain=0.7, epoch=1220
    ),
    "df_gan_files": Layout("cub_dfgan", DF_GAN, (*NARROW, "system.truncation=0"), "image", 0.7),
    "early_df_gan": Layout(
        "cub_dfgan_id0",
        {"generator": "dfgan_early G", "discriminator": "dfgan_early D", **ENCODERS},
        NARROW,
        image="image",
        gain=0.7,
    ),
    "rat_gan": Layout(
        "coco_ratgan",
        {"generator": "ratgan G", "discriminator": "ratgan D", **ENCODERS},
        NARROW,
        image="image",
        gain=0.7,
        save=parallel,
    ),
    "clip_gan": Layout(
        "coco_galip",
        {"generator": "galip G", "discriminator": "galip D", "head": "galip C"},
        (
            *NARROW,
            "system.clip={clip}/model.safetensors",
            "system.text_encoder.width=32",
            "system.bridge_width=8",
            "data.tokenizer={clip}/tokenizer.json",
            "data.max_tokens=14",
        ),
        image="image",
        gain=0.7,
        epoch=480,
    ),
    "attn_gan": staged("attngan", damsm=True),
    "dm_gan": staged("dmgan"),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A captions.pickle of 60 words, some of which are those of the shards in another order."""
    known = Vocabulary.load(shards / "vocabulary.json").words[:0:-1]
    numbered = ["<end>", *known, *(f"word{number}" for number in range(59 - len(known)))]
    path = tmp_path_factory.mktemp("words") / "captions.pickle"
    by_word = {word: number for number, word in enumerate(numbered)}
    path.write_bytes(pickle.dumps([[[1, 2]], [[1]], dict(enumerate(numbered)), by_word], 2))
    return path


def convert(*arguments: object) -> int:
    return COMMAND.main([str(word) for word in arguments])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden case's CLIP, as a person downloads one."""
    return write_golden_clip(tmp_path_factory.mktemp("clip") / "clip-vit-base-patch32")


def written(folder: Path, layout: Layout) -> list[str]:
    """Write a layout's files and return the settings that name them."""
    folder.mkdir()
    keys = [*layout.files]
    if layout.epoch:
        letters = {"netG": "generator", "netD": "discriminator", "netC": "head"}
        networks = {name: parallel(layout.state(key)) for name, key in letters.items()}
        optimizers = {"optimizer_G": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
        whole = {"model": networks, "optimizers": optimizers, "epoch": layout.epoch}
        torch.save(whole, folder / "generator.pth")
        keys = [key for key in keys if key not in letters.values()]
    for key in keys:
        torch.save(layout.save(layout.state(key)), folder / f"{key}.pth")
    return [f"{path.stem}={path}" for path in sorted(folder.iterdir())]


def golden_image(layout: Layout, trained: TrainedRun) -> None:
    """The run's generator makes what the released code made."""
    golden, system = case(layout.files["generator"].split()[0]), trained.system
    system.modules.eval()
    network = system.emas[0].target if system.emas else system.modules["generator"]
    inputs: list[Any] = [golden.input("z", 100), golden.input("c", 256)]
    if system.emas:
        inputs += [golden.input("w", 256, 18), torch.zeros(2, 18, dtype=torch.bool)]
    if isinstance(system, CLIPGAN):
        inputs = [inputs[0], golden.array("sentence"), system.vision]
    with torch.no_grad():
        golden.check(layout.image, network(*inputs).images[-1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_published_files_to_scores_and_on(  # noqa: PLR0917
    name: str,
    tmp_path: Path,
    words: Path,
    clip: Path,
    shards: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    layout, run = LAYOUTS[name], tmp_path / "published"
    settings = (word.replace("{clip}", str(clip)) for word in layout.settings)
    belongs = (f"experiment={layout.experiment}", *settings, f"data.path={shards}")
    files = written(tmp_path / "files", layout)
    if "text_encoder" in layout.files:
        files.append(f"vocabulary={words}")
    assert convert(*belongs, *files, f"output={run}") == 0, capfd.readouterr()
    said = capfd.readouterr().out
    assert said.endswith(f"{run}\n")
    assert said.count("left out") == bool(layout.epoch)
    made = json.loads((run / "run.json").read_text())["converted"]
    assert made["missing"] == list(layout.missing)
    assert {*made["files"]} >= {*layout.files}
    for one in made["files"].values():
        assert one["sha256"] == sha256_of_file(Path(one["file"]))

    trained = load_run(run, device="cpu")
    golden_image(layout, trained)
    assert GENERATE.main([f"run={run}", "device=cpu", "captions=[a red circle]", "columns=1"]) == 0
    score = (
        *("device=cpu", "threads=1", "evaluation.detector=efficientnet_lite0"),
        *("evaluation.images=4", "evaluation.batch_size=4"),
        *("evaluation.metrics=[kid]", "evaluation.kid_subset_size=4"),
    )
    assert EVALUATE.main([f"run={run}", *score]) == 0, capfd.readouterr()
    assert read_json_lines(run / "scores.jsonl")[0]["images"] == 0

    small = ("engine.batch_size=2", "engine.sample_rows=1", "engine.sample_columns=1")
    steps = (*ENGINE, *small, "engine.images=6", f"runs={tmp_path / 'runs'}")
    done = run_task("train", *belongs, *steps, f"start_from={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"starting from {run}: " in done.stdout
    onward = only_run(tmp_path / "runs")
    began = json.loads((onward / "run.json").read_text())["start_from"]
    assert {*trained.system.modules} == {*began["networks"], *layout.missing}
    assert len(read_json_lines(onward / "metrics.jsonl")) == 3

    file, folder = tmp_path / "all.safetensors", tmp_path / "exported"
    assert CHECKPOINTS.main(["export", str(onward), "what=all", f"output={file}"]) == 0
    assert CHECKPOINTS.main(["export", str(onward), f"output={folder}"]) == 0
    latest, alone = load_run(onward, device="cpu"), load_run(folder, device="cpu")
    exported = load_run(onward, str(file), device="cpu")
    for key, value in latest.system.modules.state_dict().items():
        assert torch.equal(value, exported.system.modules.state_dict()[key]), key
    images = [each.generate("a red circle", seed=3).images for each in (latest, alone)]
    assert torch.equal(*images)


PUBLISHED = {
    "cub_ssagan": {"generator": "ssa_G", "discriminator": "ssa_D", "image_encoder": "cnn"},
    "cub_dfgan": {"generator": "dfnew_G", "discriminator": "dfnew_D", "head": "dfnew_C"},
    "cub_dfgan_id0": {"generator": "dfold_G", "discriminator": "dfold_D"},
    "cub_ratgan": {"generator": "rat_G", "discriminator": "ssa_D"},
    "cub_attngan2": {
        "generator": "attn_G",
        **{f"discriminator{64 << n}": f"attn_D{n}" for n in range(3)},
    },
    "cub_dmgan": {
        "generator": "dm_G",
        **{f"discriminator{64 << n}": f"dm_D{n}" for n in range(3)},
    },
    "cub_encoders": {"image_encoder": "cnn"},
}


def settings_of(name: str, files: Mapping[str, str]) -> tuple[ConvertConfig, TrainConfig]:
    more = ("system.epoch_images=8855",) if name == "cub_encoders" else ()
    given: dict[str, Any] = {key: f"{file}.safetensors" for key, file in files.items()}
    training = compose_config("train", [f"experiment={name}", *more], TrainConfig)
    return ConvertConfig(**given, text_encoder="rnn.safetensors"), training


@pytest.fixture
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published networks of full size, on torch's meta device: names and shapes, no memory."""

    def read(path: Path, *_: str) -> State:
        return {
            key: torch.empty(
                shape,
                device="meta",
                dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32,
            )
            for key, shape in published(path.stem).items()
        }

    monkeypatch.setattr(published_run, "read_tensors", read)


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_those_of_their_experiments(name: str) -> None:
    read = read_published_run(*settings_of(name, PUBLISHED[name]))
    assert read.sources.keys() == {*PUBLISHED[name], "text_encoder"}
    given = {source.slot.place.split(".")[0] for source in read.sources.values()}
    assert {*read.missing} == {*read.system.modules} - given - {"generator_ema"}
    assert read.vocabulary is None
    averaged = {"cub_attngan2", "cub_dmgan"}
    assert bool(read.system.emas) == (name in averaged) == ("EMA" in "".join(read.lines()))


def refused(config: ConvertConfig, training: TrainConfig) -> str:
    with pytest.raises(UserError) as refusal:
        read_published_run(config, training)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.usefixtures("shapes_alone")
def test_what_does_not_belong_together() -> None:
    config, training = settings_of("cub_ssagan", {"generator": "dfold_G"})
    assert "ssa_gan generator: " in refused(config, training)
    config, training = settings_of("cub_dfgan_id0", {"generator": "dfnew_G"})
    assert "holds a DFGenerator and the experiment has a EarlyDFGenerator" in refused(
        config, training
    )
    config, training = settings_of("coco_attngan2", {"generator": "attn_G"})
    error = refused(config, training)
    assert "system.generator_width=32 system.residuals=2" in error
    config, training = settings_of("cub_dfgan", {"generator": "dfnew_G", "image_encoder": "cnn"})
    assert "the experiment has no such network" in refused(config, training)
    config, training = settings_of(
        "cub_dfgan", {"generator": "dfnew_G", "discriminator": "dfnew_D"}
    )
    assert "head=netC" in refused(config, training)
    config, training = settings_of("cub_attngan2", {"discriminator": "attn_D0"})
    assert "name generator=, discriminator64=" in refused(config, training)
    config, training = settings_of("cub_attngan2", {})
    assert "generator= names no file" in refused(config, training)
    config, training = settings_of("cub_attndmgan", {"generator": "attn_G"})
    assert "no checkpoint of such a system was published" in refused(config, training)
    config, training = settings_of("cars_ssagan_bert", {"generator": "ssa_G"})
    assert "all published text encoders are LSTMs" in refused(config, training)


def test_encoders_alone_words_and_the_folder(
    tmp_path: Path, words: Path, shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without an image encoder: what a pre-training starts from, and the words behind it."""
    torch.save(case("damsm").weights("text"), tmp_path / "text.pth")
    own = ("experiment=cub_encoders", "system.epoch_images=24", f"runs={tmp_path / 'runs'}")
    given = (*own, f"text_encoder={tmp_path}/text.pth", f"vocabulary={words}")
    assert convert(*given, "--print-run") == 0
    run = Path(capfd.readouterr().out.strip())
    assert run.parent == tmp_path / "runs"
    assert not run.exists()
    assert convert(*given) == 0
    assert "not given: image_encoder" in capfd.readouterr().out
    assert (run / "text_encoder.safetensors").is_file()
    assert run_vocabulary(run, open_run(run).data).size == 60
    assert CHECKPOINTS.main(["verify", str(run)]) == 0
    capfd.readouterr()
    assert STATUS.main([str(run)]) == 0
    assert "done: made of published checkpoints" in capfd.readouterr().out
    for more, reason in (
        (given, f"{run} is a run already"),
        ((*own, f"text_encoder={tmp_path}/text.pth", f"data.path={shards}"), "knows 60 words and"),
        ((*given, f"output={tmp_path}"), "name a folder that is not there"),
        ((*given[:-1], "vocabulary=no.pickle"), "vocabulary=no.pickle: there is no such file"),
        ((*given, "generator=a.pth"), "generator= is no network of system=damsm"),
    ):
        capfd.readouterr()
        assert convert(*more) == 2
        assert reason in capfd.readouterr().err


def test_published_encoders_are_trained_on(tmp_path: Path, words: Path, shards: Path) -> None:
    """No weights of Inception are named: the start gives them."""
    for name in ("text", "image"):
        torch.save(case("damsm").weights(name), tmp_path / f"{name}_encoder200.pth")
    files = [f"{name}_encoder={tmp_path}/{name}_encoder200.pth" for name in ("text", "image")]
    small = ("system.resolution=64", "engine.batch_size=2", "engine.images=6")
    own = ("experiment=cub_encoders", *ENGINE, *small, f"data.path={shards}")
    run, epoch = tmp_path / "published", "system.epoch_images=24"
    assert convert(*own, epoch, *files, f"vocabulary={words}", f"output={run}") == 0
    done = run_task("pretrain", *own, f"runs={tmp_path / 'runs'}", f"start_from={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"starting from {run}: image_encoder, text_encoder; optim" in done.stdout
    onward = only_run(tmp_path / "runs")
    assert len(read_json_lines(onward / "metrics.jsonl")) == 3
    before, after = (load_file(each / "image_encoder.safetensors") for each in (run, onward))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"heads.regions.weight", "heads.code.weight", "heads.code.bias"}
    output = tmp_path / "image_encoder.safetensors"
    assert CHECKPOINTS.main(["export", str(onward), "what=image_encoder", f"output={output}"]) == 0
    exported = load_file(output)
    assert exported.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in exported.items())
