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
from torch import Tensor

from t2i_hpc import load_run
from t2i_hpc.checkpoints import COMMAND as CHECKPOINTS
from t2i_hpc.common.files import read_json_lines, sha256_of_file
from t2i_hpc.convert import export_reference
from t2i_hpc.convert.__main__ import COMMAND
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.generate import COMMAND as GENERATE
from t2i_hpc.models.df_generator import EarlyDFGenerator
from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.sampling.trained_run import TrainedRun
from tests.golden import fill
from tests.golden.case import case
from tests.support.training import ENGINE, only_run, run_task

CPU = torch.device("cpu")
NARROW = ("system.generator_width=4", "system.discriminator_width=4")
ENCODERS = {"text_encoder": "damsm text"}
State = dict[str, Any]


def plain(state: State) -> State:
    return state


def parallel(state: State) -> State:
    """As DataParallel saves a network."""
    return {f"module.{name}": value for name, value in state.items()}


def early_networks() -> dict[str, State]:
    """DF-GAN's first version, of which there is no golden case."""
    made = {
        "generator": EarlyDFGenerator(256, width=4),
        "discriminator": MatchingDiscriminator(256, 4),
    }
    states = {name: export_reference("df_gan", name, network) for name, network in made.items()}
    return {
        name: fill.state_dict({k: tuple(v.shape) for k, v in state.items()}, 3, 0.5)
        for name, state in states.items()
    }


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
        missing: networks that nobody gives.
    """

    experiment: str
    files: Mapping[str, str]
    settings: tuple[str, ...] = (*NARROW, "system.damsm.weight=0")
    image: str = ""
    gain: float = 1.0
    save: Callable[[State], State] = plain
    missing: tuple[str, ...] = ()

    def state(self, key: str) -> State:
        if self.experiment == "cub_dfgan_id0" and key not in ENCODERS:
            return early_networks()[key]
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
        "cub_dfgan",
        {"generator": "dfgan G", "discriminator": "dfgan D", "head": "dfgan C", **ENCODERS},
        (*NARROW, "system.truncation=0"),
        image="image",
        gain=0.7,
    ),
    "early_df_gan": Layout(
        "cub_dfgan_id0", {"generator": "", "discriminator": "", **ENCODERS}, NARROW
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


def written(folder: Path, layout: Layout) -> list[str]:
    """Write a layout's files and return the settings that name them."""
    folder.mkdir()
    if "head" in layout.files:  # all in one, beside the optimizers
        letters = {"netG": "generator", "netD": "discriminator", "netC": "head"}
        networks = {name: parallel(layout.state(key)) for name, key in letters.items()}
        optimizers = {"optimizer_G": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
        whole = {"model": networks, "optimizers": optimizers, "epoch": 1220}
        torch.save(whole, folder / "state_epoch_1220.pth")
        torch.save(layout.state("text_encoder"), folder / "text.pth")
        return [f"generator={folder}/state_epoch_1220.pth", f"text_encoder={folder}/text.pth"]
    for key in layout.files:
        torch.save(layout.save(layout.state(key)), folder / f"{key}.pth")
    return [f"{key}={folder}/{key}.pth" for key in layout.files]


def golden_image(layout: Layout, trained: TrainedRun) -> None:
    """The run's generator makes what the released code made."""
    golden, system = case(layout.files["generator"].split()[0]), trained.system
    system.modules.eval()
    network = system.emas[0].target if system.emas else system.modules["generator"]
    inputs: list[Tensor] = [golden.input("z", 100), golden.input("c", 256)]
    if system.emas:
        inputs += [golden.input("w", 256, 18), torch.zeros(2, 18, dtype=torch.bool)]
    with torch.no_grad():
        golden.check(layout.image, network(*inputs).images[-1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_published_files_to_scores_and_on(
    name: str,
    tmp_path: Path,
    words: Path,
    shards: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    layout, run = LAYOUTS[name], tmp_path / "published"
    belongs = (f"experiment={layout.experiment}", *layout.settings, f"data.path={shards}")
    files = written(tmp_path / "files", layout)
    assert convert(*belongs, *files, f"vocabulary={words}", f"output={run}") == 0, (
        capfd.readouterr()
    )
    assert capfd.readouterr().out.endswith(f"{run}\n")
    made = json.loads((run / "run.json").read_text())["converted"]
    assert made["missing"] == list(layout.missing)
    assert made["files"].keys() == layout.files.keys()
    assert {one["sha256"] for one in made["files"].values()} == {
        sha256_of_file(path) for path in (tmp_path / "files").iterdir()
    }

    trained = load_run(run, device="cpu")
    if layout.image:
        golden_image(layout, trained)
    assert GENERATE.main([f"run={run}", "device=cpu", "captions=[a red circle]", "columns=1"]) == 0
    score = (
        *("device=cpu", "threads=1", "evaluation.detector=efficientnet_lite0"),
        *("evaluation.images=4", "evaluation.batch_size=4", "evaluation.metrics=[fid]"),
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

    output = tmp_path / "all.safetensors"
    assert CHECKPOINTS.main(["export", str(onward), "what=all", f"output={output}"]) == 0
    exported, latest = (load_run(onward, w, device="cpu") for w in (str(output), "latest"))
    for key, value in latest.system.modules.state_dict().items():
        assert torch.equal(value, exported.system.modules.state_dict()[key]), key
