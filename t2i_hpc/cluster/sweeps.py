"""Sweeps: one command line with several values of a key, as one plan of many runs.

``system.masks=2,3,4 seed=1,2`` are two axes and six points; hydra's grammar says what is a list
of values. A point is a run like any other: it has the run directory that its own command line
has, so points that were trained before, alone or in another sweep, are not trained again. The
sweep's folder ``RUNS/sweeps/<name>-<hash>`` holds no result, only ``sweep.json``: the axes, and
the runs of the points.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from t2i_hpc.cluster.jobs import JOBS_FOLDER, Plan, Work
from t2i_hpc.common.errors import ConfigurationError, RunError, nearest
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.config.compose import compose_config, from_yaml
from t2i_hpc.config.grammar import parse, refuse_axis, split_values
from t2i_hpc.config.tasks import TASK_SCHEMAS
from t2i_hpc.runs.layout import list_checkpoints, not_of_exported
from t2i_hpc.runs.sessions import DONE, read_sessions

FILE_NAME = "sweep.json"
Locate = Callable[[Any], Path]
"""Returns the run directory of a configuration; a command's ``locate``."""


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        values: of each axis, as written.
        overrides: the whole command line.
        run: the run directory.
    """

    values: dict[str, str]
    overrides: tuple[str, ...]
    run: Path


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep, in the order of the command line; the last axis varies quickest."""

    folder: Path
    task: str
    axes: dict[str, tuple[str, ...]]
    points: tuple[Point, ...]


def plan_sweep(
    task: str, overrides: Sequence[str], folder: Path | None, locate: Locate, *, write: bool = True
) -> Plan:
    """Write a sweep's folder; return the works that are still to be done, perhaps none.

    Args:
        task: train or pretrain.
        overrides: key=value and group=name, some with several values.
        folder: a folder of the user's configuration files.
        locate: returns the run directory of a point's configuration.
        write: False for a dry run, which leaves no folder.

    Raises:
        ConfigurationError: no key has several values, one is no list of values, or a point is no
            valid configuration.
    """
    axes, points = _axes(overrides), dict[Path, Point]()
    configs: dict[Path, Any] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        config, point = _point(task, overrides, chosen, folder, locate)
        points.setdefault(point.run, point)
        configs.setdefault(point.run, config)
    sweep = _sweep(task, axes, points, configs)
    if write:
        _write(sweep)
    options = (f"--config-dir={folder}",) if folder else ()
    works = [
        Work(task, (*options, *point.overrides), point.run)
        for point in sweep.points
        if not is_done(point.run, configs[point.run])
    ]
    return Plan(sweep.folder.name, tuple(works), sweep.folder)


def refuse_axes(overrides: Sequence[str]) -> None:
    """Refuse keys with several values where one run is meant.

    Raises:
        ConfigurationError: names the key and what to do.
    """
    for override in parse(overrides):
        refuse_axis(override, "add --sweep to run each of them, or ")


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is one of a sweep."""
    return (folder / FILE_NAME).is_file()


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder.

    Raises:
        RunError: sweep.json is missing or damaged.
    """
    try:
        row = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        axes = {axis["key"]: tuple(axis["values"]) for axis in row["axes"]}
        place = folder.resolve() if folder.is_symlink() else folder  # ".." goes up from there
        points = [
            Point(
                {key: point["values"][key] for key in axes},
                tuple(point["overrides"]),
                Path(os.path.normpath(place / point["run"])),
            )
            for point in row["points"]
        ]
        return Sweep(folder, str(row["task"]), axes, tuple(points))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder / FILE_NAME} cannot be read ({error}): repeat the same launch --sweep, "
            "which writes it anew"
        ) from error


def find_runs(names: Iterable[str]) -> list[Path]:
    """Return the run directories that some paths mean, each once, in their order.

    A path is a run, a sweep, or a folder that holds some of them. A point of a sweep counts whether
    or not it has begun.

    Raises:
        RunError: a path names none of these.
    """
    found: dict[Path, None] = {}
    for name in names:
        found.update(dict.fromkeys(_runs_of(Path(name))))
    return list(found)


def is_run(folder: Path) -> bool:
    """Return whether a run was begun or submitted in a folder."""
    return (folder / "config.yaml").is_file() or (folder / JOBS_FOLDER).is_dir()


def is_done(run: Path, config: Any) -> bool:
    """Return whether a run has reached the end that a configuration asks for."""
    if any(images >= config.engine.images for images in list_checkpoints(run)):
        return True
    sessions = read_sessions(run)
    if not sessions or sessions[-1].outcome != DONE:
        return False
    before = from_yaml(run / "config.yaml", type(config)).engine
    wanted = config.engine
    return bool((before.images, before.minutes) == (wanted.images, wanted.minutes))


def _runs_of(folder: Path) -> list[Path]:
    if is_sweep(folder):
        return [point.run for point in read_sweep(folder).points]
    if is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.glob("*") if is_run(path) or is_sweep(path))
    if not inside:
        raise RunError(_no_run(folder))
    return [run for path in inside for run in _runs_of(path)]


def _no_run(folder: Path) -> str:
    if hint := not_of_exported(folder):
        return hint
    if folder.is_dir():
        return f"{folder} holds no run yet: name a run directory or a sweep, or start a run"
    known = [path.name for path in folder.parent.glob("*") if is_run(path) or is_sweep(path)]
    hint = f": {nearest(folder.name, known)}" if known else ""
    return f"{folder}: there is no such folder{hint or '; runs are in runs/<name>-<hash>'}"


def _axes(overrides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    parsed = parse(overrides)
    keys = [override.key_or_group for override in parsed]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(
                f"{key}= is given twice: give all its values at once, {key}=a,b"
            )
    axes = {each.key_or_group: _values(each) for each in parsed if each.is_sweep_override()}
    if not axes:
        raise ConfigurationError(
            "a sweep needs a key with several values, e.g. --sweep system.masks=2,3,4 seed=1,2"
        )
    return axes


def _values(override: Override) -> tuple[str, ...]:
    try:
        values = tuple(dict.fromkeys(_written(override) or override.sweep_string_iterator()))
    except HydraException as error:
        raise ConfigurationError(
            f"{override.input_line} is no list of values: write e.g. "
            f"{override.key_or_group}=1,2,3 or {override.key_or_group}=range(1,4)"
        ) from error
    if not values:
        raise ConfigurationError(f"{override.input_line} holds no value")
    return values


def _written(override: Override) -> list[str]:
    """Return the values of ``a,b`` or ``choice(a,b)`` as they were written; [] of other sweeps.

    hydra's grammar would turn the name 1e5 into 100000.0.
    """
    _, _, text = (override.input_line or "").partition("=")
    sweep = override.value()
    if not isinstance(sweep, ChoiceSweep) or sweep.shuffle:
        return []
    if not sweep.simple_form:
        text = text.strip().removeprefix("choice(").removesuffix(")")
    values = split_values(text, "{}[]()")
    return values if all(values) and len(values) == len(sweep.list) else []


def _point(
    task: str,
    overrides: Sequence[str],
    chosen: Mapping[str, str],
    folder: Path | None,
    locate: Locate,
) -> tuple[Any, Point]:
    own = []
    for text, override in zip(overrides, parse(overrides), strict=True):
        value = chosen.get(override.key_or_group)
        own.append(text if value is None else f"{override.get_key_element()}={value}")
    try:
        config = compose_config(task, own, TASK_SCHEMAS[task], folder)
        return config, Point(dict(chosen), tuple(own), locate(config))
    except ConfigurationError as error:
        shown = " ".join(f"{key}={value}" for key, value in chosen.items())
        raise ConfigurationError(f"point {shown}: {error}") from error


def _sweep(
    task: str,
    axes: dict[str, tuple[str, ...]],
    points: Mapping[Path, Point],
    configs: Mapping[Path, Any],
) -> Sweep:
    """Name a sweep by its points, whatever order they were asked for in."""
    first = next(iter(configs.values()))
    names = {config.name for config in configs.values()}
    name = first.name if len(names) == 1 else "sweep"
    digits = sha256_of_json([task, *sorted(run.name for run in points)])[:8]
    folder = Path(first.runs) / "sweeps" / f"{name}-{digits}"
    return Sweep(folder, task, axes, tuple(points.values()))


def _write(sweep: Sweep) -> None:
    points = [
        # Relative: the folder of all runs may be moved.
        {"values": p.values, "overrides": p.overrides, "run": os.path.relpath(p.run, sweep.folder)}
        for p in sweep.points
    ]
    axes = [{"key": key, "values": values} for key, values in sweep.axes.items()]
    content = {"task": sweep.task, "axes": axes, "points": points}
    write_json(sweep.folder / FILE_NAME, content)
