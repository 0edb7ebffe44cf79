"""The same way on photographs at 256 px: shards → 20 steps → pictures → score.

The images are made here, in COCO's official layout and at a photograph's sizes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from t2i_hpc.common.files import read_json_lines
from tests.support.data import make_coco
from tests.support.training import TINY, only_run, run_task


def output_of(task: str, *words: str) -> str:
    done = run_task(task, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(900)
def test_from_photographs_to_a_score(tmp_path: Path) -> None:
    for split in ("train", "test"):
        images, captions = make_coco(tmp_path / split, count=12, width=420, height=310)
        output_of(
            "shards",
            "source=coco",
            f"images={images}",
            f"captions={captions}",
            f"output={tmp_path / 'shards'}",
            f"split={split}",
        )
    words = [word for word in TINY if "resolution" not in word and "batch_size" not in word]
    output_of(
        "train",
        f"runs={tmp_path / 'runs'}",
        f"data.path={tmp_path / 'shards'}",
        *words,
        "system.resolution=256",
        "engine.batch_size=2",
        "engine.images=40",
    )
    run = only_run(tmp_path / "runs")
    assert len(read_json_lines(run / "metrics.jsonl")) == 20
    output_of("generate", f"run={run}", "columns=2", "captions=['a red circle','a blue square']")
    (drawing,) = (run / "generated").iterdir()
    picture = Image.open(drawing / "pictures.png")
    assert picture.width >= 2 * 256
    assert picture.height >= 2 * 256
    drawn = json.loads((drawing / "pictures.json").read_text())
    assert drawn["captions"] == ["a red circle", "a blue square"]
    text = output_of(
        "evaluate",
        f"run={run}",
        "evaluation=demo",
        "evaluation.images=6",
        "evaluation.batch_size=2",
        "evaluation.shards=2",
        "evaluation.split=test",
        "device=cpu",
    )
    assert "FD (EfficientNet-Lite2)" in text
    assert "N 6, N real 12" in text
    html, png = output_of("report", f"run={run}").split()
    assert Path(html).stat().st_size > 10_000
    assert Image.open(png).width > 256
