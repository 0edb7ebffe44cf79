"""Sweeps: one command line with several values of a key, as one plan of many runs.

``system.masks=2,3,4 seed=1,2`` are two axes and six points; hydra's grammar says what is a list
of values. A point is a run like any other: it has the run directory that its own command line
finds, so points that were trained before, alone or in another sweep, are not trained again. The
sweep's folder ``RUNS/sweeps/<name>-<hash>`` holds no result, only ``sweep.json``: the axes, and
where the points lie.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.config.compose import compose_config, from_yaml, parse, refuse_axis, split_values
from t2i_hpc.config.tasks import TASK_SCHEMAS
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.sessions import DONE, read_sessions

FILE_NAME = "sweep.json"
Locate = Callable[[Any], Path]
"""Returns the run directory of a configuration; a door's ``locate``."""


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        values: of each axis, as written.
        words: the whole command line.
        run: the run directory.
    """

    values: dict[str, str]
    words: tuple[str, ...]
    run: Path


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep, in the order of the command line; the last axis varies quickest."""

    folder: Path
    task: str
    axes: dict[str, tuple[str, ...]]
    points: tuple[Point, ...]


def plan_sweep(
    task: str, words: Sequence[str], folder: Path | None, locate: Locate, *, write: bool = True
) -> Plan:
    """Write a sweep's folder; return the works that are still to be done, perhaps none.

    Args:
        task: train or pretrain.
        words: key=value and group=name, some with several values.
        folder: a folder of one's own configuration files.
        locate: where the run of a point's configuration lies.
        write: False for a dry run, which leaves no folder.

    Raises:
        ConfigurationError: no word has several values, one cannot be counted, or a point is no
            valid configuration.
    """
    axes, points = _axes(words), dict[Path, Point]()
    configs: dict[Path, Any] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        config, point = _point(task, words, chosen, folder, locate)
        points.setdefault(point.run, point)
        configs.setdefault(point.run, config)
    sweep = _sweep(task, axes, points, configs)
    if write:
        _write(sweep)
    options = (f"--config-dir={folder}",) if folder else ()
    works = [
        Work(task, (*options, *point.words), point.run)
        for point in sweep.points
        if not is_done(point.run, configs[point.run])
    ]
    return Plan(sweep.folder.name, tuple(works), sweep.folder)


def refuse_axes(words: Sequence[str]) -> None:
    """Refuse words with several values where one run is meant.

    Raises:
        ConfigurationError: names the word and what to do.
    """
    for override in parse(words):
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
        points = [
            Point(
                {key: point["values"][key] for key in axes},
                tuple(point["words"]),
                _joined(folder, point["run"]),
            )
            for point in row["points"]
        ]
        return Sweep(folder, str(row["task"]), axes, tuple(points))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder / FILE_NAME} cannot be read ({error}): give launch --sweep the same words "
            "again, which writes it anew"
        ) from error


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


def _axes(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    overrides = parse(words)
    keys = [override.key_or_group for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(f"{key}= is given twice: give all its values in one word")
    axes = {each.key_or_group: _values(each) for each in overrides if each.is_sweep_override()}
    if not axes:
        raise ConfigurationError(
            "a sweep wants a key with several values, e.g. --sweep system.masks=2,3,4 seed=1,2"
        )
    return axes


def _values(override: Override) -> tuple[str, ...]:
    try:
        values = tuple(dict.fromkeys(_written(override) or override.sweep_string_iterator()))
    except HydraException as error:
        raise ConfigurationError(
            f"{override.input_line} cannot be counted: name the values, e.g. "
            f"{override.key_or_group}=1,2,3 or {override.key_or_group}=range(1,4)"
        ) from error
    if not values:
        raise ConfigurationError(f"{override.input_line} holds no value")
    return values


def _written(override: Override) -> list[str]:
    """Return the values of ``a,b`` or ``choice(a,b)`` as they were written; [] of other sweeps.

    hydra's grammar would make 100000.0 of the name 1e5.
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
    task: str, words: Sequence[str], chosen: Mapping[str, str], folder: Path | None, locate: Locate
) -> tuple[Any, Point]:
    own = []
    for word, override in zip(words, parse(words), strict=True):
        value = chosen.get(override.key_or_group)
        own.append(word if value is None else f"{override.get_key_element()}={value}")
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
        {"values": p.values, "words": p.words, "run": os.path.relpath(p.run, sweep.folder)}
        for p in sweep.points
    ]
    axes = [{"key": key, "values": values} for key, values in sweep.axes.items()]
    content = {"task": sweep.task, "axes": axes, "points": points}
    write_json(sweep.folder / FILE_NAME, content)


def _joined(folder: Path, relative: str) -> Path:
    return Path(os.path.normpath(folder / relative))
