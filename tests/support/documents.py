"""README.md and the other pages as what they are to a reader: commands to type.

A shell itself reads the blocks, with loops, quotes and line breaks: programs of the same names
stand first in PATH and note how they were called, in place of doing anything.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "generated"),
    *sorted((ROOT / "shards").glob("*/README.md")),
    ROOT / "benchmarks" / "README.md",
]
PROGRAMS = (
    *("python", "python3", "make", "sbatch", "pip", "git", "sinfo", "scancel", "torchrun"),
    "seq",  # of two numbers only: less work, and as good
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELL = ("bash", "sh")
_NOTE = r"""#!/bin/bash
name=${0##*/}
if [ "$name" = seq ]; then printf '0\n1\n'; exit; fi
{ printf '%s\x1f' "$name" "$@"; printf '\x1e'; } >> "$NOTED"
case "$name $*" in
  *--print-run*) echo encoders ;;
  *format=json*) echo '[{"run": "RUN"}]' ;;
  "python -c "*) shift; exec "$PYTHON" -c "$@" ;;
  sbatch*--array=1-16*--wrap*) for SLURM_ARRAY_TASK_ID in {1..16}; do
    export SLURM_ARRAY_TASK_ID; bash -c "${@: -1}"; done ;;
esac
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its file.
        number: counted from 1 in its page.
        language: what stands behind the fence, or "".
        text: its lines.
    """

    page: Path
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.number}"

    @property
    def shell(self) -> str:
        """The commands of the block, "" if it has none: a shell's lines, or those after ``$``."""
        prompted = re.findall(r"^\$ (.*)$", self.text, re.MULTILINE)
        if prompted:
            return "\n".join(prompted)
        commands = self.language in _SHELL or self.text.startswith(("python ", "for "))
        return self.text if commands and self.language != "python" else ""


Call = tuple[str, ...]  # a program and its arguments


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(page, number, *one) for number, one in enumerate(found, 1)]


def spans_of(text: str) -> Iterator[str]:
    """Give what stands between single backquotes, on one line each."""
    for span in _SPAN.findall(_BLOCK.sub("", text)):
        yield " ".join(span.replace("\\|", "|").split())


def calls_of(shell: str, folder: Path) -> list[Call]:
    """Let bash run the lines of a block in a folder; return the calls of programs, in order.

    Raises:
        AssertionError: bash does not take the lines.
    """
    noted, programs = folder / ".noted", folder / ".venv" / "bin"
    noted.write_text("")
    programs.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (programs / name).write_text(_NOTE)
        (programs / name).chmod(0o755)
    text = shell.replace("<this repository>", "ADDRESS")
    cloned = folder / "t2i_hpc"  # where `git clone` leads
    if not cloned.exists():
        cloned.symlink_to(folder)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "NOTED": str(noted),
            "PYTHON": sys.executable,
            "encoders": "encoders",  # of an earlier block of the page
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    calls = noted.read_text(encoding="utf-8").split("\x1e")[:-1]
    return [tuple(call.split("\x1f")[:-1]) for call in calls]


def split_words(text: str) -> Sequence[str]:
    """Split a span as a shell does; prose with an apostrophe has no words."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return ()
