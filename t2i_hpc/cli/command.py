"""What all doors share: the grammar of the command line, help, and how errors leave.

A door is a module with a task name, examples and a function that takes the task's
configuration; everything else is here.

Doors whose words without a key are runs: ``python -m t2i_hpc.status runs/a runs/b``.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from t2i_hpc.common.errors import (
    INTERRUPTED,
    USER_ERROR,
    ConfigurationError,
    UserError,
    memory_explained,
)
from t2i_hpc.common.terminal import say
from t2i_hpc.config.compose import compose_config, group_choices, groups_of, quoted, to_yaml
from t2i_hpc.config.fields import Entry, entries

ConfigT = TypeVar("ConfigT")
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_OPTIONS = """Options:
  --help            this text
  --print-config    print the resolved configuration and leave
  --print-run       print the run directory and leave (train and pretrain)
  --config-dir DIR  a folder of configuration files of your own (experiment/mine.yaml, …)"""


@dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """One command: ``python -m t2i_hpc.<task> key=value …``.

    Attributes:
        task: the command's name.
        summary: what it does, for ``--help``.
        config: the dataclass of its configuration.
        run: does the work; its return value is the exit code (None: 0).
        examples: two or more command lines.
        locate: where the work of a configuration lies, for ``--print-run``.
    """

    task: str
    summary: str
    config: type[ConfigT]
    run: Callable[[ConfigT], int | None]
    examples: Sequence[str]
    locate: Callable[[ConfigT], Path] | None = None

    def main(self, words: Sequence[str] | None = None) -> int:
        """Run the command with `words` (default: the process's) and return its exit code."""
        given = list(sys.argv[1:] if words is None else words)
        return answered(self.task, lambda: self._open(given))

    def _open(self, words: list[str]) -> int:
        if "--help" in words or "-h" in words:
            say(self.help())
            return 0
        options, settings = split_options(words)
        config = compose_config(self.task, settings, self.config, options.folder)
        if options.print_config:
            say(to_yaml(config).rstrip("\n"))
            return 0
        if options.print_run:
            say(self._located(config))
            return 0
        return self.run(config) or 0

    def _located(self, config: ConfigT) -> Path:
        if self.locate is None:
            raise ConfigurationError("--print-run belongs to train and pretrain")
        return self.locate(config)

    def help(self) -> str:
        """Return the help text: summary, examples, groups and keys."""
        config = compose_config(self.task, [], self.config)
        lines = [f"python -m t2i_hpc.{self.task} key=value …", "", self.summary, "", "Examples:"]
        lines += [f"  {example}" for example in self.examples]
        lines += [
            "",
            _OPTIONS,
            "",
            *_groups(self.task),
            "Keys (type, range or choices, default):",
        ]
        lines += [_describe(entry) for entry in entries(config)]
        return "\n".join(lines)


def answered(task: str, work: Callable[[], int]) -> int:
    """Do a command's work; what a user can put right is told in a sentence, with an exit code."""
    try:
        with memory_explained():
            return work()
    except UserError as error:
        say(f"t2i_hpc.{task}: {error}", sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _NOT_WRITABLE or not error.filename:
            raise
        said = f"cannot write {error.filename}: {error.strerror}; name another place"
        say(f"t2i_hpc.{task}: {said}", sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        say(f"\nt2i_hpc.{task}: interrupted", sys.stderr)
        return INTERRUPTED


@dataclass(frozen=True)
class Options:
    """What stands on the command line beside the settings."""

    print_config: bool = False
    print_run: bool = False
    folder: Path | None = None


def split_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """Separate ``--options`` from ``key=value`` settings.

    Raises:
        ConfigurationError: an unknown option or a missing folder.
    """
    settings, folder, flags = [], None, set[str]()
    rest = iter(words)
    for word in rest:
        if word in ("--print-config", "--print-run"):
            flags.add(word)
        elif word.split("=")[0] == "--config-dir":
            named = word.split("=", 1)[1] if "=" in word else next(rest, "")
            folder = Path(named)
            if not named or not folder.is_dir():
                raise ConfigurationError(f"--config-dir {named}: there is no such folder")
        elif word.startswith("-"):
            raise ConfigurationError(
                f"unknown option {word}: settings are written key=value; see --help"
            )
        else:
            settings.append(word)
    return Options("--print-config" in flags, "--print-run" in flags, folder), settings


def _groups(task: str) -> list[str]:
    from t2i_hpc.common.files import resource

    found = {group: group_choices(group, [resource("configs")]) for group in groups_of(task)}
    lines = [f"  {group}={'|'.join(choices)}" for group, choices in found.items() if choices]
    return ["Groups (files of configs/):", *lines, ""] if lines else []


def _describe(entry: Entry) -> str:
    meaning = entry.meaning
    if meaning.choices is not None:
        kind = "|".join(map(str, meaning.choices))
    else:
        kind = entry.type.replace(" | None", "") + _range(meaning.minimum, meaning.maximum)
    unit = f" {meaning.unit}" if meaning.unit else ""
    value = "-" if entry.value is None or entry.value in ("", []) else entry.value
    return f"  {entry.key} = {value}{unit}\n      {meaning.doc} ({kind})"


def _range(minimum: Any, maximum: Any) -> str:
    if minimum is None and maximum is None:
        return ""
    low = "" if minimum is None else f"{minimum:g}"
    high = "" if maximum is None else f"{maximum:g}"
    return f", {low}..{high}"


class RunsCommand(Command[ConfigT]):
    """A door that takes any number of runs, with or without ``run=``."""

    def _open(self, words: list[str]) -> int:
        assert is_dataclass(self.config)
        return super()._open(gather_runs(words, [each.name for each in fields(self.config)]))


def is_path(word: str, keys: Collection[str]) -> bool:
    """Return whether a word names a path and no setting, as runs/a does, and lr=0.1/a if there."""
    if word.startswith("-"):
        return False
    key, equals, _ = word.partition("=")
    place = Path(word)
    there = place.exists() or (len(place.parts) > 1 and place.parent.is_dir())
    return not equals or (key not in keys and there)


def gather_runs(words: list[str], keys: Collection[str] = ()) -> list[str]:
    """Put all words that are paths, and the value of ``run=PATH``, into one list setting.

    Args:
        words: the command line.
        keys: the settings of the command.
    """
    runs, others, follows = list[str](), list[str](), False
    for word in words:
        if not follows and is_path(word, keys):
            runs.append(word)
        elif word.startswith("run=") and not word.startswith("run=["):
            runs.append(word.removeprefix("run="))
        else:
            others.append(word)
        follows = word == "--config-dir"
    return [*others, f"run=[{','.join(map(quoted, runs))}]"] if runs else others
