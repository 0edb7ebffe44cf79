"""How a configuration value is declared: default, meaning, unit, range, offered values.

A declaration is all there is: `--help`, the checks, the suggestions for misspelt values and
the identity of a run are derived from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.files import sha256_of_file

NO_VALUE = object()


@dataclass(frozen=True)
class Meaning:
    """What is known of one value beside its type.

    Attributes:
        doc: one line for people.
        unit: what the number counts, "" for none.
        minimum, maximum: inclusive bounds of a number.
        choices: the values offered, None for any.
        aliases: other names of offered values.
        identity: whether another value makes another run (False for paths, speeds, logging).
        neutral: the value that is no part of the identity, of a setting that came after runs
            had been trained: what they did without it.
        counts_as: values that are another one in the identity.
        file: the value is the path of a file whose content counts, not its name.
    """

    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    identity: bool = True
    file: bool = False
    aliases: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    neutral: Any = NO_VALUE
    counts_as: Mapping[Any, Any] = dataclasses.field(default_factory=dict)


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    identity: bool = True,
    file: bool = False,
    aliases: Mapping[Any, Any] | None = None,
    neutral: Any = NO_VALUE,
    counts_as: Mapping[Any, Any] | None = None,
) -> Any:
    """Declare a field of a configuration dataclass. Lists are copied for each instance."""
    offered = tuple(choices) if choices is not None else None
    meaning = Meaning(
        doc,
        unit,
        minimum,
        maximum,
        offered,
        identity,
        file,
        dict(aliases or {}),
        neutral,
        dict(counts_as or {}),
    )
    metadata = {"meaning": meaning}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def inherited(schema: type[Any], name: str, *default: Any, **changes: Any) -> Any:
    """Declare a field as `schema` does, with another default and other meaning where given."""
    (declared,) = (item for item in dataclasses.fields(schema) if item.name == name)
    meaning: Meaning = declared.metadata["meaning"]
    values = {item.name: getattr(meaning, item.name) for item in dataclasses.fields(meaning)}
    return setting(default[0] if default else declared.default, **(values | changes))


def section(factory: Callable[[], Any]) -> Any:
    """Declare a nested configuration dataclass, or a partial of one with other defaults."""
    return dataclasses.field(default_factory=factory)


@dataclass(frozen=True)
class Entry:
    """One leaf of a configuration: dotted key, type as written, value, meaning."""

    key: str
    type: str
    value: Any
    meaning: Meaning


def entries(config: Any, prefix: str = "") -> Iterator[Entry]:
    """Walk over the leaves of a configuration dataclass instance, in the order declared."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        key = prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from entries(value, key + ".")
        elif "meaning" in item.metadata:
            yield Entry(key, str(item.type), value, item.metadata["meaning"])


def resolve_aliases(config: Any) -> None:
    """Give every value that has several names the one that its declaration offers, in place."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            resolve_aliases(value)
            continue
        names = item.metadata["meaning"].aliases if "meaning" in item.metadata else {}
        if names and isinstance(value, list):
            setattr(config, item.name, list(dict.fromkeys(names.get(v, v) for v in value)))
        elif names:
            setattr(config, item.name, names.get(value, value))


def check(config: Any) -> None:
    """Check every value against its declaration.

    Raises:
        ConfigurationError: a number that is NaN, infinite or out of range, or a value that is not
            offered.
    """
    for entry in entries(config):
        for value in entry.value if isinstance(entry.value, list) else [entry.value]:
            _check_value(entry.key, value, entry.meaning)


def _check_value(key: str, value: Any, meaning: Meaning) -> None:
    if value is None:
        return
    if meaning.choices is not None and value not in meaning.choices:
        hint = nearest(str(value), map(str, [*meaning.choices, *meaning.aliases]))
        raise ConfigurationError(f"{key}={value} is not offered: {hint}")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise ConfigurationError(f"{key}={value} is not a finite number: give one")
    unit = f" {meaning.unit}" if meaning.unit else ""
    if meaning.minimum is not None and value < meaning.minimum:
        raise ConfigurationError(f"{key}={value} is too small: at least {meaning.minimum:g}{unit}")
    if meaning.maximum is not None and value > meaning.maximum:
        raise ConfigurationError(f"{key}={value} is too large: at most {meaning.maximum:g}{unit}")


def identity(config: Any, recorded: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the values that make the run what it is, by dotted key.

    Args:
        config: the configuration.
        recorded: SHA-256 of files by key, for those that are no longer there.

    Raises:
        ConfigurationError: a file is named that is neither there nor recorded.
    """
    known = recorded or {}
    return {
        entry.key: _identity(entry, known.get(entry.key))
        for entry in entries(config)
        if entry.meaning.identity and entry.value != entry.meaning.neutral
    }


def file_entries(config: Any) -> list[Entry]:
    """Return the leaves that name a file whose content decides the result."""
    return [e for e in entries(config) if e.meaning.identity and e.meaning.file and e.value]


def _identity(entry: Entry, recorded: str | None) -> Any:
    if not entry.meaning.file or not entry.value:
        counts_as = entry.meaning.counts_as
        return counts_as.get(entry.value, entry.value) if counts_as else entry.value
    if Path(entry.value).is_file():
        return sha256_of_file(Path(entry.value))
    if recorded is None:
        raise ConfigurationError(f"{entry.key}={entry.value}: there is no such file")
    return recorded
