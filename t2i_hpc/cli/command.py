"""What all commands share: the command line, help, and how errors become exit codes.

A command is a module with a task name, examples and a function that takes the task's
configuration. Arguments without a key are runs where a command takes any number of them:
``python -m t2i_hpc.status runs/a runs/b``.
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
from t2i_hpc.config.compose import compose_config, group_choices, to_yaml
from t2i_hpc.config.fields import Entry, entries
from t2i_hpc.config.grammar import quoted
from t2i_hpc.config.tasks import TASK_GROUPS

ConfigT = TypeVar("ConfigT")
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_OPTIONS = """Options:
  --help            this text
  --print-config    print the resolved configuration and exit
  --print-run       print the run directory and exit (train and pretrain)
  --config-dir DIR  folder of your configuration files (experiment/mine.yaml, …)"""


@dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """One command: ``python -m t2i_hpc.<task> key=value …``.

    Attributes:
        task: the command's name.
        summary: what it does, for ``--help``.
        config: the dataclass of its configuration.
        run: does the work; its return value is the exit code (None: 0).
        examples: two or more command lines.
        locate: the run directory of a configuration, for ``--print-run``.
    """

    task: str
    summary: str
    config: type[ConfigT]
    run: Callable[[ConfigT], int | None]
    examples: Sequence[str]
    locate: Callable[[ConfigT], Path] | None = None

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command with `arguments` (default: the process's) and return its exit code."""
        given = list(sys.argv[1:] if arguments is None else arguments)
        return answered(self.task, lambda: self._dispatch(given))

    def _dispatch(self, arguments: list[str]) -> int:
        if "--help" in arguments or "-h" in arguments:
            say(self.help())
            return 0
        options, overrides = split_options(arguments)
        config = compose_config(self.task, overrides, self.config, options.folder)
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
        return "\n".join(
            [
                f"python -m t2i_hpc.{self.task} key=value …",
                f"\n{self.summary}\n\nExamples:",
                *(f"  {example}" for example in self.examples),
                f"\n{_OPTIONS}\n",
                *_groups(self.task),
                "Keys (type, range or choices, default):",
                *(_describe(entry) for entry in entries(config)),
            ]
        )


def answered(task: str, work: Callable[[], int]) -> int:
    """Do a command's work; an error that a user can fix becomes a sentence and an exit code."""
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
    """The arguments that are no overrides."""

    print_config: bool = False
    print_run: bool = False
    folder: Path | None = None


def split_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Separate ``--options`` from ``key=value`` overrides.

    Raises:
        ConfigurationError: an unknown option or a missing folder.
    """
    overrides, folder, flags = [], None, set[str]()
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--print-config", "--print-run"):
            flags.add(argument)
        elif argument.split("=")[0] == "--config-dir":
            named = argument.split("=", 1)[1] if "=" in argument else next(rest, "")
            folder = Path(named)
            if not named or not folder.is_dir():
                raise ConfigurationError(f"--config-dir {named}: there is no such folder")
        elif argument.startswith("-"):
            raise ConfigurationError(
                f"unknown option {argument}: settings are written key=value; see --help"
            )
        else:
            overrides.append(argument)
    return Options("--print-config" in flags, "--print-run" in flags, folder), overrides


def _groups(task: str) -> list[str]:
    found = {group: group_choices(group) for group in TASK_GROUPS[task]}
    lines = [f"  {group}={'|'.join(choices)}" for group, choices in found.items() if choices]
    return ["Groups (group=name):", *lines, ""] if lines else []


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
    """A command that takes any number of runs, with or without ``run=``."""

    def _dispatch(self, arguments: list[str]) -> int:
        assert is_dataclass(self.config)
        return super()._dispatch(
            gather_runs(arguments, [each.name for each in fields(self.config)])
        )


def is_path(argument: str, keys: Collection[str]) -> bool:
    """Return whether an argument names a path, as runs/a does, and lr=0.1/a where it exists."""
    if argument.startswith("-"):
        return False
    key, equals, _ = argument.partition("=")
    place = Path(argument)
    there = place.exists() or (len(place.parts) > 1 and place.parent.is_dir())
    return not equals or (key not in keys and there)


def gather_runs(arguments: list[str], keys: Collection[str] = ()) -> list[str]:
    """Put all arguments that are paths, and the value of ``run=PATH``, into one list override.

    Args:
        arguments: the command line.
        keys: the settings of the command.
    """
    runs, others, is_value = list[str](), list[str](), False
    for argument in arguments:
        if not is_value and is_path(argument, keys):
            runs.append(argument)
        elif argument.startswith("run=") and not argument.startswith("run=["):
            runs.append(argument.removeprefix("run="))
        else:
            others.append(argument)
        is_value = argument == "--config-dir"
    return [*others, f"run=[{','.join(map(quoted, runs))}]"] if runs else others
