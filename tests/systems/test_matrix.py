"""Any two settings of training together, for every system: a row trains two steps, saves, resumes
and resumes, or is refused in one sentence before the system is built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partialmethod
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from t2i_hpc import pretrain, train
from t2i_hpc.common.errors import USER_ERROR
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.systems import SYSTEM_SCHEMAS as REGISTERED
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.training import compilation, session
from tests.support.pairs import Clause, Row, covering_rows, refused_rows
from tests.support.training import only_run
from tests.systems.tiny import COMMON, SYSTEMS, TINY

DAMSM = "damsm"  # the system that has encoders alone
WITH_TRAINED_TEXT = ("ssa_gan", "bert", "one_stage_gan")
# Of a system, or of stages that two systems here have: without networks of their own kind.
VARIANTS = ("affine", "projected", "attn_dcgan", "attndm_gan", "dmattn_gan")
ZERO = ("zero0", "zero1", "zero2")
FACTORS = {
    "system": (*(n for n in SYSTEMS if n not in VARIANTS), DAMSM),
    "engine": ("ddp", *ZERO),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "layout": ("contiguous", "channels_last"),
    "accumulate": ("1", "2"),
    "optimizer": ("adam", "fused", "deepspeed"),
    "ema": ("none", "ramp", "fixed"),
    "clip": ("off", "1.0"),
    "nonfinite": ("stop", "skip"),
    "text": ("frozen", "damsm", "joint"),
    "schedule": ("none", "linear", "cosine"),
    "compile": ("none", "first", "text_encoder"),
}
REFUSED: tuple[Clause, ...] = (
    {"engine": ZERO, "precision": ["fp16"]},
    {"engine": ZERO, "nonfinite": ["skip"]},
    {"precision": ["fp16"], "nonfinite": ["skip"]},
    {"engine": ZERO, "text": ["damsm", "joint"], "clip": ["1.0"]},
    {"engine": ZERO, "system": [DAMSM], "clip": ["1.0"]},
    {
        "system": [name for name in FACTORS["system"] if name not in WITH_TRAINED_TEXT],
        "text": ["damsm", "joint"],
    },
    {"system": [DAMSM], "ema": ["ramp", "fixed"]},
    {"engine": ["ddp", "zero0"], "layout": ["channels_last"], "optimizer": ["deepspeed"]},
)
ALONE: tuple[Clause, ...] = (
    {"accumulate": ["3", "4"]},
    {"optimizer": ["apex"]},
    {"compile": ["nothing"]},
)
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "engine": {
        "ddp": ("engine=ddp",),
        **{f"zero{n}": ("engine=deepspeed", f"engine.zero_stage={n}") for n in range(3)},
    },
    "layout": {"channels_last": ("engine.channels_last=true",)},
    "ema": {
        "ramp": ("system.ema_images=16",),
        "fixed": ("system.ema_images=16", "system.ema_ramp=false"),
    },
    "clip": {"1.0": ("engine.clip=1.0",)},
    "text": {kind: (f"system.text_encoder.training={kind}",) for kind in ("damsm", "joint")},
    "schedule": {
        "linear": ("engine.schedule.decay=linear", "engine.schedule.warmup_images=6"),
        "cosine": ("engine.schedule.decay=cosine", "engine.schedule.decay_images=16"),
    },
}
PLAIN = {name: values[0] for name, values in FACTORS.items()}
LIVELY = 1e-4  # longest mean gradient of a weight that must not stand still
STEPS = ("engine.checkpoint.every_images=8", "engine.checkpoint.keep=9")


def named(row: Row) -> str:
    """Return what is not plain in a row."""
    return "-".join(
        value if name in ("system", "engine", "precision") else f"{name}={value}"
        for name, value in row.items()
        if value != FACTORS[name][0] or name == "system"
    )


def overrides(row: Row) -> list[str]:
    """Return a row as overrides."""
    pretrained = row["system"] == DAMSM
    if pretrained:
        image_encoder = "system.image_encoder.name=efficientnet_lite0"
        found = [*COMMON, image_encoder, "system.text_encoder.clip=null"]
    else:
        found = [*SYSTEMS[row["system"]], *TINY, "system.ema_images=0"]
        if row["system"] in WITH_TRAINED_TEXT:
            found.append("system.text_encoder.training=frozen")
            found.append("system.image_encoder.name=efficientnet_lite0")
    for name, choices in WORDS.items():
        found += choices.get(row[name], ())
    found += [f"engine.{key}={row[key]}" for key in ("precision", "accumulate", "optimizer")]
    found.append(f"engine.on_nonfinite={row['nonfinite']}")
    first = "image_encoder" if pretrained else "generator"
    compiled = {"none": "", "first": first}.get(row["compile"], row["compile"])
    return [*found, f"engine.compile=[{compiled}]"]


def opened(row: Row, images: int, shards: Path, runs: Path) -> int:
    """Train a row in this process, up to so many images; return the exit code."""
    command = pretrain.COMMAND if row["system"] == DAMSM else train.COMMAND
    length = [*STEPS, f"engine.images={images}", f"data.path={shards}", f"runs={runs}"]
    return command.main([*overrides(row), *length])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as far as tracing goes."""
    eager = partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", eager)
    monkeypatch.setattr(compilation, "_BACKEND", "eager")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def moving(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], set[str]]:
    """Return which weights plain training moves, by system."""

    @cache
    def of_system(name: str) -> set[str]:
        runs = tmp_path_factory.mktemp(name)
        assert opened({**PLAIN, "system": name}, 8, shards, runs) == 0
        moments = load_file(folder_of(only_run(runs), 8) / "optimizers.safetensors")
        lively = [key for key, value in moments.items() if value.abs().max() > LIVELY]
        lively = [key.removesuffix("/exp_avg") for key in lively if key.endswith("/exp_avg")]
        return {key.replace("/", ".", 1) for key in lively} & moved(only_run(runs), 0, 8)

    return of_system


def test_every_system_is_in_it() -> None:
    assert {*FACTORS["system"], *VARIANTS} >= set(REGISTERED)


@pytest.mark.parametrize("row", covering_rows(FACTORS, REFUSED), ids=named)
def test_it_trains_saves_and_resumes(
    row: Row, shards: Path, tmp_path: Path, moving: Callable[[str], set[str]]
) -> None:
    assert opened(row, 8, shards, tmp_path) == 0
    assert opened(row, 12, shards, tmp_path) == 0
    run = only_run(tmp_path)
    assert list_checkpoints(run) == [0, 8, 12]
    assert [line["step"] for line in read_json_lines(run / "metrics.jsonl")] == [1, 2, 3]
    if row["precision"] == "fp16":  # its first updates overflow and are left out
        return
    for now in (moved(run, 0, 8), moved(run, 8, 12)):
        assert not moving(row["system"]) - now
        if row["ema"] != "none":
            weights = {key for key in moving(row["system"]) if key.startswith("generator.")}
            assert not {key.replace("generator", "generator_ema", 1) for key in weights} - now


def moved(run: Path, before: int, after: int) -> set[str]:
    """Return the weights that two checkpoints differ in."""
    old, new = (load_file(folder_of(run, n) / "weights.safetensors") for n in (before, after))
    return {key for key, value in old.items() if not value.equal(new[key])}


ROWS = refused_rows(FACTORS, (*REFUSED, *ALONE))


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_it_is_refused_before_the_system_is_built(
    row: Row,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(*_: Any) -> Any:
        raise AssertionError("the system is built")

    monkeypatch.setattr(session, "_build", build)
    assert opened(row, 8, shards, tmp_path) == USER_ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())
