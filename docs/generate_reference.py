"""Writes the reference pages of the site from the schema: commands, systems, experiments.

    python -m docs.generate_reference

``make docs`` runs it. The pages go to docs/generated/ and are not committed: the dataclasses of
``t2i_hpc/config`` are their only source, and ``--help`` shows the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import Any

from t2i_hpc.cli.command import Command
from t2i_hpc.common.files import resource
from t2i_hpc.config.compose import compose_config, group_choices
from t2i_hpc.config.fields import Entry, entries
from t2i_hpc.config.tasks import TASK_GROUPS, TASK_SCHEMAS, TrainConfig

FOLDER = Path(__file__).parent / "generated"
NAMES = ("commands.md", "systems.md", "experiments.md")
_SHARED = {"pretrain": "train"}  # commands whose keys another one has


@cache
def pages() -> Mapping[str, str]:
    """Return the text of each generated page by its file name."""
    texts = (_commands(), _systems(), _experiments())
    return {name: "\n".join(lines) for name, lines in zip(NAMES, texts, strict=True)}


def _commands() -> Iterator[str]:
    yield "# Commands and keys\n"
    yield "Every command is `python -m t2i_hpc.NAME key=value …`. Empty is `-`.\n"
    for task, schema in TASK_SCHEMAS.items():
        command = _command_of(task)
        yield f"## {task}\n"
        yield f"```text\n{command.summary}\n```\n"
        yield "Examples:\n\n```text\n" + "\n".join(command.examples) + "\n```\n"
        for group in TASK_GROUPS[task]:
            names = ", ".join(f"`{name}`" for name in group_choices(group))
            yield f"`{group}=` offers: {names}.\n"
        if shared := _SHARED.get(task):
            yield f"Its keys are those of [{shared}](#{shared}); its system is `damsm`.\n"
            continue
        config = compose_config(task, [], schema)
        kept = [entry for entry in entries(config) if not entry.key.startswith("system.")]
        yield from _table(kept)
        if task == "train":
            yield "The keys of `system` depend on the system: see [Systems](systems.md).\n"


def _command_of(task: str) -> Command[Any]:
    module = import_module(f"t2i_hpc.{task}")
    if hasattr(module, "__path__"):  # a package: its command is what python -m starts
        module = import_module(f"{module.__name__}.__main__")
    (command,) = [value for value in vars(module).values() if isinstance(value, Command)]
    return command


def _systems() -> Iterator[str]:
    yield "# Systems\n"
    yield "`system=NAME` chooses a system; these are its keys for `train` and `pretrain`.\n"
    for name in group_choices("system"):
        yield f"## {name}\n"
        config = compose_config("train", [f"system={name}"], TrainConfig)
        yield f"{getdoc(type(config.system))}\n"
        yield from _table(e for e in entries(config) if e.key.startswith("system."))


def _experiments() -> Iterator[str]:
    yield "# Experiments\n"
    yield "`experiment=NAME` sets all that a publication states. Each file names its sources.\n"
    for path in sorted((resource("configs") / "experiment").glob("*.yaml")):
        yield f"## {path.stem}\n"
        yield f"```text\n{_comment_of(path)}\n```\n"


def _comment_of(path: Path) -> str:
    """Return the comment that opens a file of configs/."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def _table(rows: Iterable[Entry]) -> Iterator[str]:
    yield "| key | default | type or choices | meaning |\n|---|---|---|---|"
    for entry in rows:
        cells = (f"`{entry.key}`", _default(entry), _kind(entry), entry.meaning.doc)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _default(entry: Entry) -> str:
    if entry.value is None or entry.value in ("", []):
        return "`-`"
    unit = f" {entry.meaning.unit}" if entry.meaning.unit else ""
    return f"`{entry.value}`{unit}"


def _kind(entry: Entry) -> str:
    meaning = entry.meaning
    if meaning.choices is not None:
        return ", ".join(f"`{choice}`" for choice in meaning.choices)
    low, high = meaning.minimum, meaning.maximum
    bounds = "" if low is None else f", from {low:g}"
    bounds += "" if high is None else f", to {high:g}"
    return entry.type.replace(" | None", "") + bounds


def main() -> None:
    """Write the pages into docs/generated."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
