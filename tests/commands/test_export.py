"""What is exported runs without its run: a folder by ``load_run``, a graph by other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from t2i_hpc import load_run
from t2i_hpc.cancel import COMMAND as CANCEL
from t2i_hpc.checkpoints import COMMAND
from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.encoder_settings import TextEncoderConfig
from t2i_hpc.config.one_stage_settings import DFGANConfig
from t2i_hpc.data.captions import WordPieces
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.generate import COMMAND as GENERATE
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.report import COMMAND as REPORT
from t2i_hpc.runs.start_from import find_start
from t2i_hpc.sampling.chosen_weights import ChosenWeights
from t2i_hpc.sampling.graphs import PaddedLSTMEncoder, graph_of, normal_quantile, write_graph
from t2i_hpc.sampling.rules import PLAIN
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.status import COMMAND as STATUS
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import TextToImageSystem
from t2i_hpc.table import COMMAND as TABLE
from tests.sampling.staged import run_of, staged_run
from tests.systems.tiny import configured

CAPTIONS = ["a red circle", "one square and a blue circle", "a circle"]


@pytest.fixture(scope="module")
def exported(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "birds"
    assert COMMAND.main(["export", str(made), "checkpoint=100", f"output={folder}"]) == 0
    return folder


def test_a_folder_generates_as_its_run_does(made: Path, exported: Path, tmp_path: Path) -> None:
    names = sorted(p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file())
    assert names == ["config.json", "inputs/vocabulary.json", "weights.safetensors"]
    run, alone = load_run(made, 100, device="cpu"), load_run(exported, device="cpu")
    expected, found = (each.generate(CAPTIONS, seed=3) for each in (run, alone))
    assert torch.equal(found.images, expected.images)
    assert (alone.images_seen, alone.checkpoint_sha256) == (100, run.checkpoint_sha256)
    assert alone.config == run.config
    assert sorted(alone.system.modules) == ["generator", "text_encoder"]
    words = [f"run={exported}", "captions=[a red circle]", "columns=1", "device=cpu"]
    assert GENERATE.main([*words, f"output={tmp_path / 'grid'}"]) == 0
    assert GENERATE.main([*words[:2], words[3], "images_per_caption=1", f"output={tmp_path}"]) == 0
    assert (tmp_path / "000000-0000.png").is_file()


def test_a_folder_scores_as_its_run_does(made: Path, exported: Path, tmp_path: Path) -> None:
    score = (
        *("device=cpu", "threads=1", "evaluation.detector=efficientnet_lite0"),
        *("evaluation.images=4", "evaluation.batch_size=4", "evaluation.metrics=[fid]"),
    )
    assert EVALUATE.main([f"run={made}", "checkpoint=100", f"output={tmp_path}", *score]) == 0
    assert EVALUATE.main([f"run={exported}", *score]) == 0
    theirs, ours = (
        read_json_lines(folder / "scores.jsonl")[-1]
        for folder in (tmp_path, exported.with_name(f"{exported.name}-scores"))
    )
    same = ("value", "images", "protocol", "checkpoint")
    assert [ours[key] for key in same] == [theirs[key] for key in same]


def test_a_folder_that_is_not_whole_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has one checkpoint"):
        load_run(exported, "200")
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    content = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(content[:-1] + b"x")
    with pytest.raises(RunError, match="does not match its SHA-256"):
        load_run(copy)
    (copy / "config.json").write_text('{"format": "t2i_hpc export 9"}')
    with pytest.raises(RunError, match="of the format 't2i_hpc export 9'"):
        load_run(copy)


@pytest.mark.parametrize("command", [REPORT, STATUS, TABLE, CANCEL, COMMAND])
def test_commands_about_runs_name_the_run(
    command: Command[object], exported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    word = f"run={exported}" if command in (REPORT, COMMAND) else str(exported)
    assert command.main([word]) == 2
    err = capfd.readouterr().err
    assert "was exported from the run run, and has neither its curves" in err
    assert err.count("\n") == 1


def test_a_training_starts_from_the_run_itself(exported: Path) -> None:
    with pytest.raises(ConfigurationError, match="nor its other networks: name that run"):
        find_start(str(exported))


def through(run: TrainedRun, program: Callable[..., list[Tensor]]) -> float:
    """Return how far a graph of tokens is off what the run generates, at most."""
    made = run.generate(CAPTIONS, seed=3)
    tokens, lengths = run.tokenize(CAPTIONS, 3, PLAIN)
    images, *maps = program(tokens, lengths, made.noise)
    pairs = [(images, made.stages[-1]), *zip(maps, [*made.masks, *made.attention], strict=True)]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def test_onnx_gives_what_the_run_gives(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    words = ["export", str(made), "what=all", "format=onnx", f"output={folder}"]
    assert COMMAND.main(words) == 0
    about = json.loads((folder / "config.json").read_text())
    inputs, outputs = ([each["name"] for each in about[side]] for side in ("inputs", "outputs"))
    assert inputs == ["tokens", "lengths", "noise"]
    assert about["outputs"][0] == {"name": "images", "type": "float32", "shape": ["B", 3, 64, 64]}
    session = InferenceSession(str(folder / about["file"]))

    def program(*given: Tensor) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(inputs, given, strict=True)}
        return [torch.from_numpy(each) for each in session.run(outputs, fed)]

    assert through(load_run(made, device="cpu"), program) < 1e-4
    with pytest.raises(RunError, match=r"has no weights.safetensors: a graph is run by"):
        load_run(folder)


def df_run() -> TrainedRun:
    text = TextEncoderConfig(width=8, embedding_width=6)
    narrow = DFGANConfig(resolution=32, generator_width=2, discriminator_width=2, text_encoder=text)
    return run_of(narrow, CAPTIONS)


def clip_run() -> TrainedRun:
    config = configured("clip_gan")
    tokens = WordPieces.load(Path(config.data.tokenizer))
    system = build_system(config.system, tokens.size)
    assert isinstance(system, TextToImageSystem)
    weights = ChosenWeights(Path("none"), "0" * 64, 0)
    return TrainedRun(Path("none"), config, weights, system, tokens, torch.device("cpu"))


def tiny_run(name: str) -> TrainedRun:
    made = {"df_gan": df_run, "clip_gan": clip_run}
    return made[name]() if name in made else staged_run(name, CAPTIONS)


@pytest.mark.parametrize("name", ["attn_gan", "dm_gan", "df_gan", "clip_gan"])
def test_torch_export_gives_what_a_run_gives(name: str, tmp_path: Path) -> None:
    run = tiny_run(name)
    path = write_graph(graph_of(run, "all"), "torch_export", tmp_path)
    program = torch.export.load(path).module()
    with torch.no_grad():
        assert through(run, lambda *given: list(program(*given))) < 1e-4


@pytest.mark.parametrize("name", ["attn_gan", "df_gan"])
def test_onnx_of_a_generator_gives_what_it_gives(name: str, tmp_path: Path) -> None:
    """Of encoded captions; DF-GAN's noise is cut by a function that ONNX does not have."""
    graph = graph_of(tiny_run(name), "generator")
    session = InferenceSession(str(write_graph(graph, "onnx", tmp_path)))
    given = graph.example(3)
    fed = {key: value.numpy() for key, value in zip(graph.inputs, given, strict=True)}
    for found, expected in zip(session.run(None, fed), graph.run(given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_normal_distribution_of_an_onnx_graph() -> None:
    share = torch.linspace(0.0228, 0.9772, 9001, dtype=torch.float64)
    found = normal_quantile(share)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.special.ndtri(share), rtol=0, atol=5e-6)


def test_padded_captions_give_the_features_of_packed_ones() -> None:
    encoder = LSTMTextEncoder(20, 8, 6).eval()
    tokens, lengths = torch.randint(1, 20, (5, 7)), torch.tensor([3, 7, 1, 7, 2])
    with torch.no_grad():
        for ours, theirs in zip(
            PaddedLSTMEncoder(encoder)(tokens, lengths), encoder(tokens, lengths), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output=x.safetensors", "format=folder"], "is no folder, as format=folder writes"),
        (["output=x", "what=all"], "a folder has all that generate"),
        (["output=x", "format=onnx", "what=discriminator"], "is no graph"),
        (["output=there"], "is there already"),
        (["output=x", "format=onnx"], "pip install 't2i-hpc[export]'"),
    ],
)
def test_refusals(  # noqa: PLR0917
    words: list[str],
    said: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("t2i_hpc.sampling.graphs.find_spec", lambda name: None)
    (tmp_path / "there").mkdir()
    assert COMMAND.main(["export", str(made), *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
