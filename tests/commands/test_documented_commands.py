"""Every command of the pages is run as it stands there, on stand-ins that bear the pages' names.

Words that make it small are put behind its own. Cluster jobs end as dry runs, with stand-ins for
Slurm's clients. What is not run has its reason below, and is checked as far as it can be.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from shutil import which

import pytest

from t2i_hpc import launch
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.fields import entries
from t2i_hpc.config.tasks import TASK_SCHEMAS, TrainConfig
from t2i_hpc.data.build.commands import SUBCOMMANDS
from tests.cluster.clients import Clients
from tests.commands.standins import PUBLISHED, enter, make_standins
from tests.support.documents import (
    PAGES,
    ROOT,
    Block,
    Call,
    blocks_of,
    calls_of,
    spans_of,
    split_words,
)
from tests.support.training import ENGINE, TINY
from tests.systems.tiny import SYSTEMS

NOT_RUN = {
    "git clone": "needs the internet",
    "pip": "needs the internet; its files and extras are looked for",
    "python3 -m venv": "takes seconds, and says nothing of ours",
    "python -m pytest": "tests run tests; its files are looked for",
    "python -m tests.slurm.lab": "tests/slurm starts that lab",
    "python -m benchmarks.": "measures for minutes; looked for",
    "python least_squares.py": "tests/systems/test_new_system.py runs it",
    "torchrun": "eight processes; tests/distributed starts ranks so",
    "sinfo": "Slurm's own",
    "scancel": "tests/slurm/test_training.py sends that signal",
    "sbatch --test-only": "an option that is spoken of",
    "sbatch --array": "ran, element by element, while the block was read",
    "sbatch slurm/": "tests/slurm runs the scripts; bash reads them here",
    "make": "make reads it without doing anything (-n)",
    "python -m t2i_hpc.serve": "answers until Ctrl-C; tests/serving opens it",
    "python -m t2i_hpc.checkpoints export RUN what=all format=onnx": "test_export.py does it once",
    "python -m t2i_hpc.checkpoints export RUN format=torch_export": "test_export.py does it once",
    "python -m t2i_hpc.fetch": "needs the internet; test_fetch_command.py has a server",
}
LITTLE = (
    "evaluation.images=8",
    "evaluation.batch_size=4",
    "evaluation.kid_subset_size=4",
    "evaluation.folds=2",
    "evaluation.candidates=4",
    "evaluation.detector_resize=own",
    "device=cpu",
)
JUDGES = (
    "evaluation.text_encoder=encoders/text_encoder.safetensors",
    "evaluation.image_encoder=encoders/image_encoder.safetensors",
)
ENCODERS = (
    "system.image_encoder.name=efficientnet_lite0",
    "system.image_encoder.imagenet_weights=",
    "system.resolution=64",
    "system.text_encoder.width=16",
    "system.text_encoder.embedding_width=12",
)
PUT_BEHIND: dict[str, tuple[str, ...]] = {
    "train": (*TINY, "engine.images=4", "data.path=data/shards/coco"),
    "pretrain": (*ENGINE, *ENCODERS, "engine.images=4", "data.path=data/shards/coco"),
    "evaluate": (*LITTLE, *JUDGES, "evaluation.detector=efficientnet_lite0"),
    "generate": ("device=cpu",),
    "shards": ("workers=0",),
}
MADE_SMALLER = {
    "evaluation.shards=16": "evaluation.shards=2",
    "evaluation.images=1000": "evaluation.images=8",
}
WITHOUT_INCEPTION_SCORE = {  # its weights are not here
    "evaluation=clean": "evaluation.metrics=[fid,kid,prc]",
    "evaluation=ssagan_paper": "evaluation.metrics=[fid]",
}
ELSEWHERE = (("=/archive/", "=archive/"), ("=/data/shards", "=data/shards"))
_FORM = re.compile(r"…|\w\|\w|\[key=value|\bDIR\b|=FILE\b")  # of a command, not one
_KEY = re.compile(r"'?([a-z_]+(?:\.[a-z_]+)*)=")
FOREIGN = {  # keywords of other people's programs
    "feature_extractor_internal_dtype",
    "isc_split",
    "isc_splits",
    "prc",
    "fid",
    "num",
    "shuffle",
}
_SETTING = re.compile(r"(data|engine|evaluation|cluster|system)\.[\w.]+=\S+")
_GROUPS = {"evaluation": ("evaluate", "run=runs/x"), "cluster": ("launch", "cluster=slurm")}
_EXTRA = re.compile(r"\[([a-z0-9,]+)\]")
MAKE = which("make") or "make"
BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.shell]


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    return make_standins(tmp_path_factory.mktemp("documents") / "standins", shards)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[Block, list[Call]]:
    """The calls of every block, as a shell makes them."""
    folder = tmp_path_factory.mktemp("shell")
    return {block: calls_of(block.shell, folder) for block in BLOCKS}


@pytest.fixture
def desk(standins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: all that the pages name is there, and a Slurm that takes all jobs."""
    clients = Clients(tmp_path / "bin", monkeypatch)
    clients.answer("scontrol", "MaxArraySize = 1001")
    clients.answer("sinfo", "gpu*|up|infinite|64|128|gpu:8")
    for name in ("sbatch", "squeue", "sacct", "srun", "scancel"):
        clients.answer(name)
    folder = tmp_path / "desk"
    enter(standins, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_commands_of_a_block_run(
    block: Block, calls: dict[Block, list[Call]], capfd: pytest.CaptureFixture[str]
) -> None:
    for call in calls[block]:
        assert run(call) == 0, f"{call}: {capfd.readouterr().err}"


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_in_a_text_run(page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for call in dict.fromkeys(calls_in_text(page.read_text(encoding="utf-8"))):
        assert run(call) == 0, f"{call}: {capfd.readouterr().err}"


def test_every_reason_is_needed(calls: dict[Block, list[Call]]) -> None:
    in_text = (call for page in PAGES for call in calls_in_text(page.read_text(encoding="utf-8")))
    lines = [" ".join(call) for call in (*chain(*calls.values()), *in_text)]
    assert not [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_and_commands_that_a_text_names_are_there(page: Path) -> None:
    keys = known_keys()
    for span in spans_of(page.read_text(encoding="utf-8")):
        if found := re.search(r"python -m t2i_hpc\.(\w+)(?: ([a-z]+(?:\|[a-z]+)+))?", span):
            assert found[1] in TASK_SCHEMAS, span
            assert {*(found[2] or "").split("|")} - {""} <= {*SUBCOMMANDS}, span
        for word in span.split():
            if name := _KEY.match(word):
                assert name[1] in keys | FOREIGN, span


@pytest.mark.usefixtures("desk")
def test_python_of_the_pages_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]
    elsewhere = [block for block in blocks if block.page.name == "new-system.md"]
    for block in blocks:
        code = compile(block.text, str(block), "exec")
        if block not in elsewhere:  # tests/systems/test_new_system.py
            exec(code, {"__name__": "page"})
            assert capsys.readouterr().out
    assert len(blocks) > len(elsewhere) == 1


@cache
def known_keys() -> set[str]:
    """Return the keys of all commands, with and without their groups."""
    keys = {key for command in SUBCOMMANDS.values() for key in command.keys}
    for task, schema in TASK_SCHEMAS.items():
        keys |= {entry.key for entry in entries(compose_config(task, [], schema))}
    for system in SYSTEMS.values():
        config = compose_config("train", system, TrainConfig)
        keys |= {entry.key for entry in entries(config)}
    groups = {key.split(".")[0] for key in keys} | {"experiment"}
    return keys | groups | {key.rsplit(".")[-1] for key in keys}


def calls_in_text(text: str) -> Iterator[Call]:
    """Give the commands between backquotes; a name alone is none, and forms are not whole."""
    for span in spans_of(text):
        words = split_words(span)
        if not words or _FORM.search(span):
            continue
        known = words[:2] == ["python", "-m"] and (len(words) > 3 or words[2].endswith(".status"))
        if known or (len(words) > 1 and words[0] in ("make", "sbatch", "pip")):
            yield tuple(words)
        elif all(_SETTING.fullmatch(word) for word in words):
            yield ("settings", *words)


def run(call: Call) -> int:
    """Run a command, or check what is not run; return its exit code."""
    line = " ".join(call)
    if call[0] == "settings":
        return take_settings(call[1:])
    reason = [start for start in NOT_RUN if line.startswith(start)]
    if reason:
        return check(call)
    assert call[:2] == ("python", "-m"), f"{line}: run it, or give a reason"
    task = call[2].removeprefix("t2i_hpc.")
    return run_command(task, [made_small(word) for word in call[3:]])


def made_small(word: str) -> str:
    for before, after in ELSEWHERE:
        word = word.replace(before, after)
    if trained := sorted(Path("runs").glob("*/text_encoder.safetensors")):  # in the same block
        word = word.replace("=encoders/", f"={trained[0].parent}/")
    return MADE_SMALLER.get(word, word)


def run_command(task: str, words: list[str]) -> int:
    if "--help" in words:
        return open_command(task, words)
    if task == "launch":
        return open_command(task, [*(w for w in words if w != "--follow"), *behind_launch(words)])
    if task == "shards" and "=" not in words[0]:
        return open_command(task, words)
    behind = PUT_BEHIND.get(task, ())
    if task == "convert":
        behind = PUBLISHED.get(words[0].removeprefix("experiment="), ())
    if any(word.startswith("run=runs/published_") for word in words):
        own = ("data.path=data/shards/coco",)  # the judges of other pages know other words
        behind = (*(word for word in behind if word not in JUDGES), *own)
    for preset, metrics in WITHOUT_INCEPTION_SCORE.items():
        behind = (*behind, metrics) if preset in words else behind
    if {"evaluation.detector=dinov2", "evaluation.detector=clip"} & {*words}:
        behind = tuple(word for word in behind if "detector" not in word)
    if "--print-run" in words:
        behind = tuple(word for word in behind if not word.startswith("device"))
    return open_command(task, [*words, *behind])


def behind_launch(words: Sequence[str]) -> tuple[str, ...]:
    task = next((w.partition("=")[2] for w in words if w.startswith("task=")), "train")
    own = {
        "train": ("data.path=data/shards/coco",),
        "evaluate": ("evaluation.detector=efficientnet_lite0",),
    }
    return ("cluster.dry_run=true", *own.get(task, ()))


def open_command(task: str, words: list[str]) -> int:
    if task == "launch":
        return launch.main(words)
    module = import_module(f"t2i_hpc.{task}{'.__main__' if task == 'convert' else ''}")
    return int(module.COMMAND.main(words))


def take_settings(words: Sequence[str]) -> int:
    """Compose a configuration with some settings, as --print-config does."""
    task, base = _GROUPS.get(words[0].partition(".")[0], ("train", "experiment=demo"))
    if any(word.startswith("cluster.processes") for word in words):
        base = "cluster=local"
    own = ["experiment=demo"] if task == "launch" else []
    return open_command(task, [*words, base, *own, "--print-config"])


def check(call: Call) -> int:
    """Check what is not run: that its files, targets, extras and modules are there."""
    program, *words = call
    if program == "make":
        return code_of(MAKE, "-n", *words)
    if program == "sbatch" and not words[0].startswith("-"):
        return code_of("bash", "-n", words[0])
    if program == "pip":
        known = (ROOT / "pyproject.toml").read_text()
        extras = ",".join(_EXTRA.findall(" ".join(words))).split(",")
        missing = [name for name in extras if name and f"\n{name} = [" not in known]
        files = [word for word in words if word.endswith(".txt") and not (ROOT / word).is_file()]
        return len(missing) + len(files)
    if words[:2] == ["-m", "pytest"]:
        return sum(not (ROOT / word).exists() for word in words if word.startswith("tests/"))
    if "-m" in words and words[1].startswith(("tests.", "benchmarks.")):
        module = ROOT / f"{words[1].replace('.', '/')}.py"
        options = [f'"{word}"' for word in words if word.startswith("--")]
        return sum(option not in module.read_text(encoding="utf-8") for option in options)
    return 0


def code_of(*command: str) -> int:
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True)
    return done.returncode
