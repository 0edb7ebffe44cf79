"""What this GPU makes of training, scoring and reading: one table, printed last and kept.

    python -m benchmarks.gpu                        # five minutes at most; `make gpu` runs it
    python -m benchmarks.gpu --seconds 120 --sections steps

Sections run in order of worth, each in a process of its own, until the time is over; what did not
fit is said. All figures of a table are of one card and one run.

- steps: whole SSA-GAN training steps, nf 64 and 256 px, DAMSM included. "plain" is the released
  code's order of operations at torch's own defaults (benchmarks/plain_step.py). MFU: a step's
  floating-point operations, as torch counts them for "ours", by the peak of dense products
  (t2i_hpc/cluster/cards.csv). Memory is the largest that torch held.
- loader: images a second that arrive on the GPU, of synthetic 304 px JPEGs.
- scoring: generator, Inception-v3 and sums; extrapolated to 30,000 images.
- compile: the same steps with compiled networks, last because compiling takes a minute.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.gpu_sections import SECTIONS, Scale

ROOT = Path(__file__).resolve().parent.parent
_WORTH_STARTING = 20.0  # seconds: less than a section's start takes
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What the sections gave, and what became of those that gave less than they should."""

    rows: list[Row]
    notes: list[str]


def measure(sections: list[str], seconds: float, arguments: list[str]) -> Found:
    """Run the sections one after the other, each within what is left of the time."""
    end = time.monotonic() + seconds
    found = Found([], [])
    for name in sections:
        left = end - time.monotonic()
        if left < _WORTH_STARTING:
            found.notes.append(f"{name}: did not fit into the time")
            continue
        sys.stdout.write(f"{name} (at most {left:.0f} s)\n")
        sys.stdout.flush()
        rows, note = run_section(name, left, arguments)
        found.rows.extend(rows)
        found.notes.extend([f"{name}: {note}"] if note else [])
    return found


def run_section(name: str, seconds: float, arguments: list[str]) -> tuple[list[Row], str]:
    """Run one in a fresh process; return its rows, and why there are no more of them."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--section", name]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=seconds, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed if isinstance(printed, str) else printed.decode()
        whole, _, _ = text.rpartition("\n")
        return rows_of(whole), "the rest did not fit into the time"
    note = ""
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        note = f"ended with code {done.returncode}: {lines[-1]}"
    return rows_of(done.stdout), note


def rows_of(text: str) -> list[Row]:
    """Read the rows that a section printed, one a line."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def step_table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of training steps."""
    form = "{:<30}{:>6}{:>10}{:>9}{:>9}{:>8}{:>9}   {}"
    steps = [row for row in rows if row["what"] == "step"]
    if not steps:
        return
    yield form.format(
        "step", "batch", "images/s", "TFLOP/s", "MFU", "GiB", "of plain", "ms by part"
    )
    plain = {
        row["batch"]: row["images_per_second"]
        for row in steps
        if row["variant"] == "plain" and row["images_per_second"]
    }
    flops = next((row["per_image"] for row in rows if row["what"] == "flops"), None)
    for row in steps:
        speed = row["images_per_second"]
        if not speed:
            yield form.format(row["variant"], row["batch"], "-", "-", "-", "-", "-", row["note"])
            continue
        done = f"{flops * speed / 1e12:.1f}" if flops else "-"
        share = f"{flops * speed / row['peak']:.1%}" if flops and row["peak"] else "-"
        ratio = f"{speed / plain[row['batch']]:.2f}" if row["batch"] in plain else "-"
        parts = ", ".join(f"{name} {took:.1f}" for name, took in row["milliseconds"].items())
        yield form.format(
            row["variant"], row["batch"], f"{speed:.1f}", done, share, row["gib"], ratio, parts
        )


def other_lines(rows: list[Row]) -> Iterator[str]:
    """Yield a line for loader and scoring each."""
    fastest = max(
        (row["images_per_second"] or 0 for row in rows if row["what"] == "step"), default=0
    )
    for row in rows:
        if row["what"] == "loader":
            ratio = (
                f", {row['images_per_second'] / fastest:.2f} of the fastest step" if fastest else ""
            )
            yield (
                f"loader: {row['images_per_second']:.0f} images/s on the device with "
                f"{row['workers']} workers on {row['cores']} cores{ratio}"
            )
        if row["what"] == "scoring":
            speed = row["images_per_second"]
            yield (
                f"scoring ({row['variant']}): {speed:.0f} images/s over {row['images']:,} images; "
                f"30,000 would take {30_000 / speed:.0f} s (extrapolated)"
            )


def tests_line(report: Path | None) -> str:
    """Say how the tests went, from their JUnit report; "" where there is none."""
    if report is None:
        return ""
    if not report.is_file():
        return "tests/gpu: no report, so they did not end"
    cases = list(ElementTree.parse(report).iter("testcase"))
    broken = [case for case in cases if any(child.tag in ("failure", "error") for child in case)]
    skipped = [child for case in cases for child in case if child.tag == "skipped"]
    passed = len(cases) - len(broken) - len(skipped)
    names = ", ".join(f"{case.get('classname')}.{case.get('name')}" for case in broken)
    reasons = "; ".join(dict.fromkeys((each.get("message") or "").strip() for each in skipped))
    return (
        f"tests/gpu: {passed} passed, {len(broken)} failed{f' ({names})' if broken else ''}, "
        f"{len(skipped)} skipped{f' ({reasons})' if reasons else ''}"
    )


def commit() -> str:
    """Return the commit of the code, and whether it has changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository here)"


def driver() -> str:
    """Return the version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def table(found: Found, device: torch.device, tests: str, scale: Scale) -> str:
    """Return everything as text."""
    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_name(device) if on_gpu else "CPU (a rehearsal, no figures)"
    lines = [
        f"{card}, driver {driver() if on_gpu else '-'}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, commit {commit()}",
        f"SSA-GAN, nf {scale.width}, {scale.resolution} px; {datetime.date.today().isoformat()}",
        "",
        *step_table(found.rows),
        *other_lines(found.rows),
        *([tests] if tests else []),
        *(f"not measured: {note}" for note in found.notes),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def keep(text: str, folder: Path, device: torch.device) -> Path:
    """Write the table as a dated file; a second one of a day gets a number."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    name = "-".join(card.lower().replace("nvidia", "").split())
    stem = f"{datetime.date.today().isoformat()}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{stem}.txt", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.txt"
    path.write_text(text)
    return path


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What this GPU makes of training and scoring.")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all sections")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--results", type=Path, help="folder to keep the table in")
    parser.add_argument("--tests", type=Path, help="JUnit report of tests/gpu, to be summed up")
    parser.add_argument("--section", choices=SECTIONS, help="one alone, printed as JSON lines")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: a rehearsal
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print, keep; return 2 without a GPU, 1 where a section failed."""
    given = parse(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("there is no GPU that torch sees: nothing to measure\n")
        return 2
    device, scale = torch.device(given.device), Scale.tiny() if given.tiny else Scale()
    if given.section:
        for row in SECTIONS[given.section](scale, device):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        return 0
    passed_on = [f"--device={given.device}", *(["--tiny"] if given.tiny else [])]
    found = measure(given.sections, given.seconds, passed_on)
    text = table(found, device, tests_line(given.tests), scale)
    if given.results is not None:
        path = keep(text, given.results, device)
        sys.stdout.write(f"kept as {path}\n")
    sys.stdout.write("\n" + text)
    return 1 if any("ended with code" in note for note in found.notes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
