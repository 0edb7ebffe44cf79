"""What is exported runs without its run: a folder by ``load_run``, a graph by other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc import load_run
from t2i_hpc.checkpoints import COMMAND
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.systems import DFGANConfig, TextEncoderConfig
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.generate import COMMAND as GENERATE
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.sampling.graphs import PaddedLSTMEncoder, graph_of, write_graph
from t2i_hpc.sampling.rules import PLAIN
from t2i_hpc.sampling.trained_run import TrainedRun
from tests.sampling.staged import run_of, staged_run

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


def through(run: TrainedRun, program: Callable[..., list[Tensor]]) -> float:
    """Return how far a graph of tokens is off what the run generates, at most."""
    made = run.generate(CAPTIONS, seed=3)
    tokens, lengths = run.tokenize(CAPTIONS, 3, PLAIN)
    images, *maps = program(tokens, lengths, made.noise)
    pairs = [(images, made.stages[-1]), *zip(maps, [*made.masks, *made.attention], strict=True)]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def test_onnx_gives_what_the_run_gives(made: Path, tmp_path: Path) -> None:
    import onnxruntime

    folder = tmp_path / "graph"
    words = ["export", str(made), "what=all", "format=onnx", f"output={folder}"]
    assert COMMAND.main(words) == 0
    about = json.loads((folder / "config.json").read_text())
    inputs, outputs = ([each["name"] for each in about[side]] for side in ("inputs", "outputs"))
    assert inputs == ["tokens", "lengths", "noise"]
    assert about["outputs"][0] == {"name": "images", "type": "float32", "shape": ["B", 3, 64, 64]}
    session = onnxruntime.InferenceSession(str(folder / about["file"]))

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


@pytest.mark.parametrize("name", ["attn_gan", "dm_gan", "df_gan"])
def test_torch_export_gives_what_a_run_gives(name: str, tmp_path: Path) -> None:
    run = df_run() if name == "df_gan" else staged_run(name, CAPTIONS)
    path = write_graph(graph_of(run, "all"), "torch_export", tmp_path)
    program = torch.export.load(path).module()
    with torch.no_grad():
        assert through(run, lambda *given: list(program(*given))) < 1e-4


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
