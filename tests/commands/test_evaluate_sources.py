"""The command `evaluate` on other sources than a run alone, and with all metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_hpc.checkpoints import COMMAND as CHECKPOINTS
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluate import COMMAND
from t2i_hpc.runs.run_directory import open_run
from tests.commands.test_evaluate_command import SETTINGS
from tests.commands.trained import write_encoders
from tests.support.data import draw_image


def test_every_metric_that_needs_no_inception(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"run={run}",
        *SETTINGS,
        "evaluation.metrics=[fid,kid,prc,r_precision]",
        "evaluation.kid_subset_size=5",
        "evaluation.candidates=6",
        "evaluation.folds=5",
        "evaluation.save_images=png",
        *write_encoders(run),
    )
    assert COMMAND.main([*words, "json=true"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == read_json_lines(run / "scores.jsonl")
    names = [row["metric"] for row in rows]
    lite0 = "(EfficientNet-Lite0)"
    assert names == [
        f"KID {lite0}",
        f"precision {lite0}",
        f"recall {lite0}",
        "R-precision",
        f"FD {lite0}",
    ]
    assert rows[3]["std"] is not None
    assert 0 <= rows[3]["value"] <= 1
    assert rows[3]["value"] * 10 == pytest.approx(round(rows[3]["value"] * 10))
    assert len(list((run.parent / "caption-codes").glob("*.npz"))) == 1
    pictures = sorted(run.glob("evaluations/*/*/images/*.png"))
    assert [path.name for path in pictures] == [f"{number:09d}.png" for number in range(10)]
    index = read_json_lines(pictures[0].with_name("index.jsonl"))
    assert [row["file"] for row in index] == [path.name for path in pictures]
    assert {row["checkpoint"] for row in index} == {rows[0]["checkpoint"]}
    assert all(row["caption"] and row["key"] and row["seed"] == 1 for row in index)
    # The same pictures as files give the same distance: nothing is lost on the way to a folder.
    again = ["images=" + str(pictures[0].parent), *SETTINGS, f"evaluation.data={_shards(run)}"]
    assert COMMAND.main([*again, "json=true", f"output={run / 'again'}"]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert row["value"] == pytest.approx(rows[4]["value"], rel=1e-6)
    assert row["protocol"] != rows[4]["protocol"]


def test_statistics_are_exported_and_compared_with(
    run: Path, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    words, ours = [f"run={run}", *SETTINGS, "checkpoint=200"], run / "ours.npz"
    assert "is no .npz file" in refusal(*words, "export_statistics=ours")
    assert COMMAND.main([*words, f"export_statistics={ours}", "json=true"]) == 0
    out, err = capfd.readouterr()
    assert f"{ours}: mean and covariance of 12 real images" in err
    other = [*words, f"export_statistics={ours}", "evaluation.real_images=11"]
    assert "holds something else" in refusal(*other)
    capfd.readouterr()
    kid = "evaluation.metrics=[fid,kid]"
    assert COMMAND.main([*words, f"reference={ours}", kid, "json=true"]) == 0
    again, said = capfd.readouterr()
    (row, known) = (json.loads(text) for text in (again, out))
    assert row["value"] == pytest.approx(known["value"], rel=1e-9)
    assert (row["n_real"], row["protocol"] != known["protocol"]) == (12, True)
    assert "and kid compare features image by image: left out" in said
    against = [*words, f"reference={ours}"]
    assert "ask for fid" in refusal(*against, "evaluation.metrics=[kid,prc]")
    assert "leave one of them out" in refusal(*against, f"export_statistics={run / 'x.npz'}")
    assert "leave it out" in refusal(*against, "evaluation.real_images=5")
    with np.load(ours) as arrays:  # as pytorch-fid and TTUR write it
        np.savez(run / "theirs.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    capfd.readouterr()
    assert COMMAND.main([*words, f"reference={run / 'theirs.npz'}"]) == 0
    printed, said = capfd.readouterr()
    assert "[N 10, N real not known, protocol" in printed
    assert "does not say which network made it" in said
    assert "N real = 0" not in said


def _shards(run: Path) -> str:
    return open_run(run).data.path


def _pixels(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("evaluations/*/*/images/*")}


@pytest.mark.parametrize("form", ["png", "npz"])
def test_images_that_are_missing_are_generated_again(
    run: Path, form: str, refusal: Callable[..., str]
) -> None:
    words = [f"run={run}", *SETTINGS]
    assert COMMAND.main(words) == 0
    sums = {path: path.read_bytes() for path in run.glob("evaluations/*/*/*.npz")}
    words += [f"evaluation.save_images={form}", "evaluation.shards=2"]
    assert "shard 0 of 2 has no valid file" in refusal(*words, "evaluation.merge=true")
    for shard in (1, 0):
        assert COMMAND.main([*words, f"evaluation.shard={shard}"]) == 0
    assert COMMAND.main([*words, "evaluation.merge=true"]) == 0
    assert {path: path.read_bytes() for path in sums} == sums  # only images were lacking
    saved = _pixels(run)
    assert len(saved) == {"png": 10, "npz": 3}[form] + 1
    lost = min(run.glob(f"evaluations/*/*/images/*.{form}"))
    lost.unlink()
    assert COMMAND.main(words) == 0
    assert _pixels(run) == saved


def test_images_of_a_folder_are_files_already(tmp_path: Path, refusal: Callable[..., str]) -> None:
    for number in range(4):
        draw_image(number).save(tmp_path / f"{number}.png")
    words = [f"images={tmp_path}", f"reference={tmp_path}", *SETTINGS, "evaluation.images=4"]
    assert "are files already" in refusal(*words, "evaluation.save_images=png")


def test_an_exported_checkpoint_scores_as_the_run_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "all.safetensors"
    words = [f"run={run}", "action=export", "what=all", f"output={exported}"]
    assert CHECKPOINTS.main(words) == 0
    capsys.readouterr()
    printed = []
    for which in ("200", str(exported)):
        assert COMMAND.main([f"run={run}", *SETTINGS, f"checkpoint={which}"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_folder_against_a_folder(
    tmp_path: Path, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    mine, real = (tmp_path / name for name in ("mine", "real"))
    for folder, numbers in ((mine, range(8)), (real, range(4, 16))):
        folder.mkdir()
        for number in numbers:
            draw_image(number).save(folder / f"{number:02d}.png")
    words = [f"images={mine}", f"reference={real}", *SETTINGS]
    assert "holds 8 images, fewer than evaluation.images=10" in refusal(*words)
    assert "nothing to compare with" in refusal(words[0], *SETTINGS, "evaluation.images=8")
    words.append("evaluation.images=8")
    asked = [*words, "evaluation.metrics=[r_precision]"]
    assert "a folder of images has none" in refusal(*asked)
    assert COMMAND.main(words) == 0
    same = [words[0], f"reference={mine}", *words[2:], f"output={tmp_path / 'same'}"]
    assert COMMAND.main(same) == 0
    (row,) = read_json_lines(tmp_path / "mine-scores" / "scores.jsonl")
    (zero,) = read_json_lines(tmp_path / "same" / "scores.jsonl")
    assert (row["n"], row["n_real"], row["images"]) == (8, 12, 0)
    assert row["value"] > 0.01
    assert zero["value"] == pytest.approx(0, abs=1e-6)
    assert "JPEG" not in capfd.readouterr().err
    draw_image(0).save(mine / "00.jpg", quality=95)
    (mine / "00.png").unlink()
    assert COMMAND.main(words) == 0
    assert f"warning: 1 images of {mine} are JPEG" in capfd.readouterr().err
    Image.new("RGB", (41, 40)).save(mine / "00.jpg")
    assert "must be equal squares" in refusal(*words)
