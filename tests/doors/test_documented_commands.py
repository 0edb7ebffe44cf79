"""Every command of README.md and docs/ is one that the product takes: all keys, all values.

Nothing is run: most need a cluster, the internet or hours. Configurations are composed and
checked as ``--print-config`` does it, and the commands of ``shards`` are parsed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from t2i_hpc import launch, shards
from t2i_hpc.common.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMAND = re.compile(r"python -m t2i_hpc\.(\w+)([^`]*)")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_GIVEN = re.compile(r"\$\([^()]*\)|\$\{?\w+\}?")
_SETTING = re.compile(r"(data|engine|evaluation|cluster)\.[\w.]+=\S+")
_PLACEHOLDERS = ("…", "task=…", "key=value", "[RUN…]", "RUN…")
_OWN_FILES = re.compile(r"(cluster|experiment|data|system|evaluation)=\w+")
Command = tuple[str, ...]


def commands_of(text: str) -> Iterator[Command]:
    """Give the commands of a page, each as task and words."""
    text = text.replace("\\\n", "")
    blocks = _FENCED.findall(text)
    lines = [line for block in blocks for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in _INLINE.findall(_FENCED.sub("", text))]
    for place in [*lines, *spans]:
        for inner in re.findall(r"\$\(([^()]*)\)", place):
            yield from _words(inner)
        yield from _words(_GIVEN.sub("1", place))
    for span in spans:
        words = _split(span)
        if words and "…" not in span and all(_SETTING.fullmatch(word) for word in words):
            yield ("settings", *words)


def _words(text: str) -> Iterator[Command]:
    for task, rest in _COMMAND.findall(text.replace("\\|", "\0")):
        words = (word.partition("\0")[0] for word in _split(rest))
        yield (task, *(word for word in words if word not in _PLACEHOLDERS))


def _split(text: str) -> list[str]:
    """Split as a shell does, up to what ends a command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = []
    try:
        for word in lexer:
            if word[0] in "();<>|&":
                break
            words.append(word)
    except ValueError:  # prose with an apostrophe
        return []
    return words


def without_own_files(words: list[str]) -> list[str]:
    """Leave out files of a user's own, which are not here."""
    if not any(word.startswith("--config-dir") for word in words):
        return words
    words = ["cluster=slurm" if word.startswith("cluster=") else word for word in words]
    kept = [word for word in words if word == "cluster=slurm" or not _OWN_FILES.fullmatch(word)]
    return [word for word in kept if not word.startswith("--config-dir")]


def one_point(words: list[str]) -> list[str]:
    """Take the first value of each axis of a sweep."""
    if "--sweep" not in words:
        return words
    return [
        word if re.search("[\\[('\"]", word) else word.partition(",")[0]
        for word in words
        if word != "--sweep"
    ]


def check(task: str, given: Command) -> int:
    """Check a command; return its exit code."""
    words = without_own_files([word for word in given if word not in ("--print-run", "--follow")])
    if task == "settings":
        group = words[0].partition(".")[0]
        task = {"evaluation": "evaluate", "cluster": "launch"}.get(group, "train")
        words += [] if "cluster.processes" in words[0] else [_BASE[task]]
    if task == "launch":
        if not any(word.startswith("experiment=") for word in words) and "task=" not in str(words):
            words = [*words, "experiment=demo"]
        return launch.main([*one_point(words), "--print-config"])
    if task == "shards" and words and "=" not in words[0] and not words[0].startswith("-"):
        shards._read_words(words[1:] or ["DIR"], shards.COMMANDS[words[0]])
        return 0
    door = import_module(f"t2i_hpc.{task}{'.__main__' if task == 'convert' else ''}").DOOR
    return int(door.open([*words, "--print-config"]))


_BASE = {"train": "experiment=demo", "evaluate": "run=runs/x", "launch": "cluster=slurm"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_command_is_taken(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    found = dict.fromkeys(commands_of(page.read_text(encoding="utf-8")))
    for task, *words in found:
        try:
            taken = check(task, tuple(words)) == 0
            told = capsys.readouterr().err
        except (UserError, KeyError) as error:
            taken, told = False, str(error)
        if not taken:
            wrong.append((task, *words, told))
    assert not wrong


def test_commands_are_found() -> None:
    text = (
        "a `python -m t2i_hpc.shards merge\\|verify DIR …` b\n```\nx=$(python -m t2i_hpc.train \\\n"
    )
    text += (
        "  seed=2 --print-run | tail)  # c\npython -m t2i_hpc.launch 'a=[b c]' w=$x && ls\n```\n"
    )
    text += "`data.reader=webdataset 'data.urls=[t/{0..1}.tar]'`\n"
    assert list(commands_of(text)) == [
        ("train", "seed=2", "--print-run"),
        ("launch", "a=[b c]", "w=1"),
        ("shards", "merge", "DIR"),
        ("settings", "data.reader=webdataset", "data.urls=[t/{0..1}.tar]"),
    ]
