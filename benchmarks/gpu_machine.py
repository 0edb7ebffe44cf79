"""What `make gpu` does: installs beside the system, tests, measures, all in eight minutes.

    python3 benchmarks/gpu_machine.py --wheels gpu-wheels --into .gpu

Runs by the machine's own Python, which has torch and little else: so it imports nothing of ours.
Without a GPU: one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TOTAL, _TESTS, _LAST = 480.0, 180.0, 15.0  # seconds: of all, of the tests, to write the table
_NEEDED = ("hydra", "simplejpeg", "torch_fidelity", "xxhash", "pytest")


def refusal(device: str) -> str:
    """Return why nothing can be proved here, "" where it can."""
    if importlib.util.find_spec("torch") is None:
        return f"make gpu needs torch in {sys.executable}: make gpu PYTHON=…"
    if device != "cuda":
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return "make gpu needs a GPU that torch sees, and there is none here"


def install(wheels: Path, into: Path) -> str:
    """Unpack the wheels into a folder of their own; return why that cannot be, "" where it can."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if not missing:
            return ""  # an environment that has everything, as .venv
        return (
            f"{', '.join(missing)} are not installed and {wheels} holds no wheels: run "
            "`make gpu-wheels` where there is a network, and bring that folder along"
        )
    shutil.rmtree(into, ignore_errors=True)
    # No resolver: what the machine has (torch, numpy, …) stays as it is, whatever its version.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run([*command, "--target", str(into), *map(str, found)], check=False)
    return "" if done.returncode == 0 else f"the wheels of {wheels} do not fit this Python"


def environment(into: Path) -> dict[str, str]:
    """Return the environment in which what was unpacked is found first."""
    names = dict(os.environ)
    names["PYTHONPATH"] = os.pathsep.join([str(into), str(ROOT), names.get("PYTHONPATH", "")])
    names["PATH"] = os.pathsep.join([str(into / "bin"), names.get("PATH", "")])
    return names


def main() -> int:
    """Install, test, measure; return 2 where that cannot be, 1 where something failed."""
    start = time.time()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wheels", type=Path, default=ROOT / "gpu-wheels")
    parser.add_argument("--into", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    given = parser.parse_args()
    into = given.into.resolve()
    reason = refusal(given.device) or install(given.wheels.resolve(), into)
    if reason:
        sys.stdout.write(reason + "\n")
        return 2
    into.mkdir(exist_ok=True)
    report, names = into / "tests.xml", environment(into)
    names["GPU_TESTS_ON"], names["GPU_TESTS_UNTIL"] = given.device, str(time.time() + _TESTS)
    options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--junitxml={report}"]
    tests = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    tested = subprocess.run(tests, check=False, cwd=ROOT, env=names).returncode
    measure = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        f"--seconds={start + _TOTAL - _LAST - time.time():.0f}",
        f"--tests={report}",
        f"--results={given.results.resolve()}",
        *(["--device=cpu", "--tiny"] if given.device == "cpu" else []),
    ]
    measured = subprocess.run(measure, check=False, cwd=ROOT, env=names).returncode
    return 1 if tested or measured else 0


if __name__ == "__main__":
    sys.exit(main())
