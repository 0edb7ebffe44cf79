"""A hybrid through the commands: what training, generation, reports and evaluation write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from t2i_hpc import evaluate, generate, report, train
from tests.support.training import only_run
from tests.systems.tiny import SYSTEMS, TINY

EVALUATION = (
    "device=cpu",
    "threads=1",
    "evaluation.detector=efficientnet_lite0",
    "evaluation.images=8",
    "evaluation.batch_size=4",
)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    overrides = (f"data.path={shards}", f"runs={runs}", "engine.images=8")
    assert train.COMMAND.main([*SYSTEMS["attndm_gan"], *TINY, *overrides]) == 0
    return only_run(runs)


def test_training_shows_stages_and_words(run: Path) -> None:
    for folder in ("samples", "stages", "words"):
        assert (run / folder / "0000000008.png").is_file()
    assert not (run / "masks").exists()
    output = run / "page.html"
    assert report.COMMAND.main([f"run={run}", f"output={output}"]) == 0
    page = output.read_text(encoding="utf-8")
    assert "ATTNDM-GAN" in page
    assert "<h2>Words that the stages read</h2>" in page


def test_generate_shows_stages_and_words(run: Path, tmp_path: Path) -> None:
    overrides = (
        f"run={run}",
        'captions=["a red circle","a blue square"]',
        "columns=2",
        "device=cpu",
    )
    assert generate.COMMAND.main([*overrides, f"output={tmp_path}"]) == 0
    told = json.loads((tmp_path / "pictures.json").read_text(encoding="utf-8"))
    assert told["files"] == ["pictures.png", "stages.png", "words.png"]
    with Image.open(tmp_path / "words.png") as grid:
        assert grid.height > 4 * 128  # two captions, two stages that read, enlarged to 128 px


def test_evaluation_is_the_same_in_two_parts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, printed = shutil.copytree(run, tmp_path / "run"), []
    for shards in (1, 2):
        assert (
            evaluate.COMMAND.main([f"run={copy}", *EVALUATION, f"evaluation.shards={shards}"]) == 0
        )
        printed.append(capsys.readouterr().out)
        shutil.rmtree(copy / "evaluations")
    assert printed[0] == printed[1]
    assert "N 8, N real 12" in printed[0]
