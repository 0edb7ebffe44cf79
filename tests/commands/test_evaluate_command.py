"""The command `evaluate`, as a person calls it: real shards, real networks, real processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.evaluate import COMMAND
from t2i_hpc.evaluation.missing import missing_shards

SETTINGS = (
    "device=cpu",
    "threads=1",
    "evaluation.detector=efficientnet_lite0",
    "evaluation.images=10",
    "evaluation.batch_size=4",
    "evaluation.split=train",
)


def _start(
    words: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "t2i_hpc.evaluate", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give a function that calls the command for a run and returns what it printed."""

    def call(run: Path, *words: str) -> str:
        capfd.readouterr()
        code = COMMAND.main([f"run={run}", *SETTINGS, *words])
        out, err = capfd.readouterr()
        assert code == 0, err
        if out:
            assert "warning: N = 10 and N real = 12 are small" in err
        return out

    return call


def test_all_checkpoints_in_one_process(run: Path, evaluate: Callable[..., str]) -> None:
    lines = evaluate(run, "checkpoint=all").splitlines()
    rows = read_json_lines(run / "scores.jsonl")
    assert [row["images"] for row in rows] == [100, 200]
    assert len(lines) == 2
    for line, row in zip(lines, rows, strict=True):
        assert row["n"] == 10
        assert row["n_real"] == 12
        assert f"FD (EfficientNet-Lite0) {row['value']:.4f}" in line
        assert f"N 10, N real 12, protocol custom {row['protocol']}" in line
        assert "not FID" in line
    assert rows[0]["value"] != rows[1]["value"]
    assert rows[0]["protocol"] == rows[1]["protocol"]


def test_shards_one_by_one_then_the_merge(
    run: Path, evaluate: Callable[..., str], refusal: Callable[..., str]
) -> None:
    whole = evaluate(run)
    shutil.rmtree(run / "evaluations")
    shutil.rmtree(run.parent / "real-statistics")
    for shard in (2, 0):
        words = ("evaluation.shards=3", f"evaluation.shard={shard}")
        assert evaluate(run, *words) == ""
    files = sorted(path.name for path in run.glob("evaluations/*/0000000200-*/*.npz"))
    assert files == [f"shard-{shard:05d}-of-00003-batch-4.npz" for shard in (0, 2)]
    config = compose_config(
        "evaluate", [f"run={run}", *SETTINGS, "evaluation.shards=3"], EvaluateConfig
    )
    assert missing_shards(config) == [1]
    sentence = refusal(f"run={run}", *SETTINGS, "evaluation.shards=3", "evaluation.merge=true")
    assert "shard 1 of 3 has no valid file for the generated and real images" in sentence
    command = sentence.split("fill it with: ")[1].split()
    assert command[:3] == ["python", "-m", "t2i_hpc.evaluate"]
    assert COMMAND.main(command[3:]) == 0
    assert missing_shards(config) == []
    assert evaluate(run, "evaluation.shards=3", "evaluation.merge=true") == whole
    assert len(read_json_lines(run / "scores.jsonl")) == 1


def test_a_shard_without_images_says_so(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (f"run={run}", *SETTINGS, "evaluation.shards=5")
    assert COMMAND.main([*words, "evaluation.shard=4"]) == 0
    told = "shard 4 of 5 has no generated images: 10 images are 3 batches of 4"
    assert told in capfd.readouterr().err
    assert COMMAND.main([*words, "evaluation.shard=0"]) == 0
    assert "has no" not in capfd.readouterr().err


def test_a_damaged_shard_is_named_and_computed_alone(
    run: Path, refusal: Callable[..., str]
) -> None:
    words = (f"run={run}", *SETTINGS, "evaluation.shards=3")
    for shard in range(3):
        assert COMMAND.main([*words, f"evaluation.shard={shard}"]) == 0
    path = next(run.glob("evaluations/*/*/shard-00002-*.npz"))
    path.write_bytes(path.read_bytes()[:-200])
    sentence = refusal(*words, "evaluation.merge=true")
    assert "shard 2 of 3 has no valid file for the generated images; fill it with:" in sentence
    others = {p: p.stat().st_mtime_ns for p in run.glob("evaluations/*/*/shard-0000[01]-*.npz")}
    assert COMMAND.main([*words]) == 0
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert len(read_json_lines(run / "scores.jsonl")) == 1


def test_two_ranks_share_the_work(run: Path, evaluate: Callable[..., str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    ranks = [
        _start(
            (f"run={run}", *SETTINGS),
            {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": port},
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], printed
    shared = read_json_lines(run / "scores.jsonl")
    shutil.rmtree(run / "evaluations")
    assert printed[1][0] == ""
    assert evaluate(run) == printed[0][0]
    assert read_json_lines(run / "scores.jsonl") == shared


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluation.shards=3", "evaluation.shard=3"), "evaluation.shard=3 does not exist"),
        (("checkpoint=150",), "checkpoint=150 is not in"),
        (("evaluation.real_images=13",), "has 12 images, fewer than the 13"),
        (("evaluation.images=1",), "evaluation.images=1 is too small: at least 2"),
        (("evaluation.split=val",), "no split 'val'"),
        (("evaluation.data=nowhere",), "nowhere"),
        (("evaluation.merge=true", "evaluation.shard=0"), "leave evaluation.shard out"),
        (("evaluation.metrics=[fdi]",), "metrics=fdi is not offered: did you mean 'fid'"),
        (("evaluation.metrics=[frechet_distance]",), "did you mean 'frechet'"),
        (
            ("evaluation.metrics=[kid]",),
            "kid_subset_size=1000 is more than the 10 generated images",
        ),
        (
            (
                "evaluation.metrics=[kid]",
                "evaluation.kid_subset_size=10",
                "evaluation.real_images=9",
            ),
            "kid_subset_size=10 is more than the 9 real images",
        ),
        (
            ("evaluation.metrics=[prc]", "evaluation.neighbors=10"),
            "10 generated images have no neighbor number 10",
        ),
        (("evaluation.metrics=[is]",), "take evaluation.detector=inception"),
        (("evaluation.metrics=[inception_score]",), "take evaluation.detector=inception"),
        (("evaluation.metrics=[r_precision]",), "no image encoder of its own"),
        (("evaluation.detector_resize=clean",), "belongs to evaluation.detector=inception"),
        (("evaluation.text_encoder=some.safetensors",), "belong together"),
        (("checkpoint=some.safetensors",), "some.safetensors cannot be read"),
        (("images=some",), "run= and images= are both given"),
    ],
)
def test_refusals(
    made: Path, refusal: Callable[..., str], words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(f"run={made}", *SETTINGS, *words)


def test_short_and_long_names_of_metrics_are_one(run: Path, evaluate: Callable[..., str]) -> None:
    short, long = (
        compose_config("evaluate", [f"evaluation.metrics={names}"], EvaluateConfig)
        for names in ("[fid,is,kid,prc]", "[frechet,inception_score,kid,precision_recall]")
    )
    assert short == long
    lines = [evaluate(run, f"evaluation.metrics=[{name}]") for name in ("fid", "frechet")]
    assert lines[0] == lines[1]
    assert len(read_json_lines(run / "scores.jsonl")) == 1


def test_a_run_must_be_named_and_be_there(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "no run is named" in refusal(*SETTINGS)
    assert "no such folder" in refusal(*SETTINGS, f"run={tmp_path / 'nothing'}")
    assert "is no run" in refusal(*SETTINGS, f"run={tmp_path}")


@pytest.mark.parametrize("which", ["all", "latest"])
def test_a_run_without_checkpoints_is_refused(
    run: Path, refusal: Callable[..., str], which: str
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoint yet" in refusal(f"run={run}", *SETTINGS, f"checkpoint={which}")


def test_missing_weights_are_refused_before_the_work(
    made: Path, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sentence = refusal(f"run={made}", *SETTINGS, "evaluation.detector=inception")
    assert "python -m t2i_hpc.fetch" in sentence


def test_a_refusal_leaves_the_process_with_code_2(tmp_path: Path) -> None:
    process = _start([f"run={tmp_path}"])
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
