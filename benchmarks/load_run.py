"""How soon a run shows its first image: import, load_run, and the first caption.

    python -m benchmarks.load_run runs/demo-1a2b3c4d
    python -m benchmarks.load_run runs/demo-1a2b3c4d --device cuda --images 64

Seconds of this process from its start; process time counts all threads. The files are in the page
cache where the run was read before.
"""

from __future__ import annotations

import argparse
import sys
import time

CAPTION = "a red heart"
_ROW = "{:<28}{:>10}{:>10}\n"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run directory, or an exported folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    parser.add_argument("--images", type=int, default=1, help="of the second call")
    options = parser.parse_args()
    begun = (time.perf_counter(), time.process_time())
    sys.stdout.write(_ROW.format("", "seconds", "CPU s"))

    def lap(what: str) -> None:
        nonlocal begun
        now = (time.perf_counter(), time.process_time())
        spent = (f"{new - old:.2f}" for new, old in zip(now, begun, strict=True))
        sys.stdout.write(_ROW.format(what, *spent))
        begun = (time.perf_counter(), time.process_time())

    from t2i_hpc import load_run

    lap("import")
    run = load_run(options.run, device=options.device)
    lap("load_run")
    run.generate(CAPTION, seed=1).pictures()
    lap("first image")
    run.generate(CAPTION, seed=2, images_per_caption=options.images).pictures()
    lap(f"{options.images} more")


if __name__ == "__main__":
    main()
