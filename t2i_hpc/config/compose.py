"""From words on the command line to a typed, checked configuration.

hydra composes the YAML files of ``configs/`` over the dataclass schemas; what it does not
give is a sentence a person can act on, so every word is looked at first: unknown keys and
group values name their nearest neighbors. No value of a user is ever instantiated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.files import resource
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.fields import check, resolve_aliases
from t2i_hpc.config.tasks import SYSTEM_SCHEMAS, TASK_SCHEMAS
from t2i_hpc.config.yaml_files import load_yaml, register_source

ConfigT = TypeVar("ConfigT")
_stored: dict[str | None, set[str]] = {None: set(), "system": set()}
_GRAMMAR = re.compile(r"""["'\[\]{},\\$]""")
_GROUPS = ("experiment", "data", "system", "engine", "evaluation", "cluster")


def compose_config(
    task: str, words: Sequence[str], expected: type[ConfigT], folder: Path | None = None
) -> ConfigT:
    """Compose, type-check and range-check the configuration of `task`.

    Args:
        task: name of ``configs/<task>.yaml``.
        words: ``key=value`` and ``group=name`` as typed.
        expected: the dataclass of the task.
        folder: a folder of one's own configuration files, looked at before the shipped ones.

    Raises:
        ConfigurationError: an unknown key or group value, a wrong type, a value out of range.
    """
    overrides = parse(words)
    for override in overrides:
        refuse_axis(override)
    roots = [folder] if folder else []
    for override in overrides:
        _check_group_value(override, task, [*roots, resource("configs")])
    composed = _compose(task, [o.input_line or "" for o in overrides if _is_group(o)], roots)
    keys = list(_leaf_keys(composed))
    for override in overrides:
        if not _is_group(override):
            _check_key(override, keys, task)
    composed = _compose(task, [_as_written(o, composed) for o in overrides], roots)
    config = to_dataclass(composed, expected)
    settings = getattr(config, "evaluation", None)
    if folder and isinstance(settings, EvaluationConfig):
        settings.presets = settings.presets or str(folder)
    return config


def parse(words: Sequence[str]) -> list[Override]:
    """Parse ``key=value`` words by hydra's grammar.

    Raises:
        ConfigurationError: a word that is no assignment.
    """
    parsed = []
    for word in words:
        if "=" not in word or word.startswith(("~", "+")):
            raise ConfigurationError(
                f"cannot read {word!r}: settings are written key=value, e.g. seed=2"
            )
        try:
            parsed += _read(word)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                f"cannot read {word!r} ({reason}); put quotes around values with spaces, "
                "brackets or commas"
            ) from error
    return parsed


def _read(word: str) -> list[Override]:
    """Parse a word; a value that is nothing in hydra's grammar, as a name with a space, is text."""
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides([word])
    except HydraException:
        key, _, value = word.partition("=")
        if items := _items(value):
            return parser.parse_overrides([f"{key}=[{','.join(items)}]"])
        if _GRAMMAR.search(value):
            raise
        return parser.parse_overrides([f'{key}="{value}"'])


def _items(value: str) -> list[str]:
    """Return the items of a list such as ``[tars/{000..127}.tar,b.tar]``, quoted.

    Braces and the commas in them belong to an item, as in a shell. Empty where the value is no
    list of plain texts.
    """
    if not (value.startswith("[") and value.endswith("]")) or re.search(r"""["'\\$]""", value):
        return []
    items = split_values(value[1:-1])
    return [quoted(item) for item in items] if all(items) else []


def split_values(text: str, brackets: str = "{}[]") -> list[str]:
    """Split text at its commas, but for those in quotes or brackets, or behind a backslash.

    Args:
        text: e.g. ``1e5, "a,b", {c,d}``, which are three values.
        brackets: pairs that hold values together.

    Returns:
        each value as it was written, without spaces around it; [""] where brackets do not match.
    """
    values, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if letter == "," and not (depth or quote or escaped):
            values.append("")
            continue
        values[-1] += letter
        if escaped or letter == "\\":
            escaped = not escaped
        elif quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        elif letter in brackets:
            depth += 1 if brackets.index(letter) % 2 == 0 else -1
    return [""] if depth else [value.strip() for value in values]


def refuse_axis(override: Override, advice: str = "") -> None:
    """Refuse a word with several values.

    Args:
        override: the word.
        advice: what to do if several values are meant.

    Raises:
        ConfigurationError: names the word and what to do.
    """
    if override.is_sweep_override():
        key, _, value = (override.input_line or "").partition("=")
        quoting = f"put quotes around a single value that has commas, e.g. '{key}=\"{value}\"'"
        raise ConfigurationError(f"{key}={value} gives several values: {advice}{quoting}")


def quoted(text: str) -> str:
    """Quote any text for hydra's grammar, which then takes it as it is.

    Backslashes count there only before a quote and at the end, where they are doubled.
    """
    escaped = re.sub(r"""(\\*)(["]|\Z)""", lambda found: found[1] * 2 + found[2], text)
    return '"' + escaped.replace('"', '\\"') + '"'


def to_dataclass(composed: DictConfig, expected: type[ConfigT]) -> ConfigT:
    """Turn a composed configuration into its dataclass and check all values."""
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigurationError(_sentence(error)) from error
    resolve_aliases(config)
    check(config)
    if not isinstance(config, expected):
        raise TypeError(f"configs/ and the schema disagree: {type(config)} is no {expected}")
    return config


def from_yaml(path: Path, expected: type[ConfigT]) -> ConfigT:
    """Read a configuration that :func:`to_yaml` wrote.

    Raises:
        ConfigurationError: the file is damaged or of an incompatible version.
    """
    register_schemas()
    try:
        loaded = cast(DictConfig, load_yaml(path.read_text(encoding="utf-8")))
        schema = OmegaConf.structured(expected)
        if "system" in loaded:
            schema.system = OmegaConf.structured(_system_schema(loaded.system.schema))
            del loaded.system["schema"]
        return to_dataclass(cast(DictConfig, OmegaConf.merge(schema, loaded)), expected)
    except (
        ConfigurationError,
        OmegaConfBaseException,
        KeyError,
        OSError,
        AttributeError,
        YAMLError,
    ) as error:
        raise ConfigurationError(f"cannot read {path}: {_sentence(error)}") from error


def _system_schema(name: str) -> type[Any]:
    if name not in SYSTEM_SCHEMAS:
        raise ConfigurationError(
            f"its system {name!r} is not registered here: use the script that registers it "
            "(docs/how-to/new-system.md)"
        )
    return SYSTEM_SCHEMAS[name]


def to_yaml(config: Any) -> str:
    """Write a configuration dataclass as YAML that :func:`from_yaml` reads."""
    tree = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    values = cast(dict[str, Any], tree)
    if "system" in values:
        names = {schema: name for name, schema in SYSTEM_SCHEMAS.items()}
        values["system"] = {"schema": names[type(config.system)], **values["system"]}
    return OmegaConf.to_yaml(values)


def register_schemas() -> None:
    """Tell hydra the dataclasses under the names that configs/ uses, each once: it takes long."""
    OmegaConf.register_new_resolver("package_file", _package_file, replace=True)
    store = ConfigStore.instance()
    for group, schemas in ((None, TASK_SCHEMAS), ("system", SYSTEM_SCHEMAS)):
        for name in schemas.keys() - _stored[group]:
            store.store(group=group, name=f"schema_{name}", node=schemas[name])
        _stored[group].update(schemas)


def group_choices(group: str, roots: Iterable[Path]) -> list[str]:
    """Return the names offered for a configuration group."""
    return sorted({path.stem for root in roots for path in (root / group).glob("*.yaml")})


def groups_of(task: str) -> list[str]:
    """Return the groups that a task's configuration has."""
    text = (resource("configs") / f"{task}.yaml").read_text(encoding="utf-8")
    return [name for name in _GROUPS if f"{name}:" in text]


def _package_file(package: str, path: str) -> str:
    """Return the path of a file that comes inside a package: ``${package_file:name,a/b}``."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise ConfigurationError(f"{path} comes inside a package: pip install {name}")
    return str(Path(spec.origin).parent / path)


def _compose(task: str, words: list[str], roots: Sequence[Path]) -> DictConfig:
    register_schemas()
    register_source()
    for root in roots:
        words = [*words, f"hydra.searchpath=[{quoted(f'text://{root.resolve()}')}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(resource("configs")), version_base="1.3"):
            return compose(task, overrides=words)
    except YAMLError as error:
        told = " ".join(str(error).split())
        raise ConfigurationError(f"a configuration file is no YAML: {told}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_sentence(error)) from error


def _as_written(override: Override, composed: DictConfig) -> str:
    """Return an override whose value is text as it was written, where the key is one of text.

    hydra's grammar would make 100000.0 of the name 1e5, and True of true; also inside a list.
    """
    word = override.input_line or ""
    if _is_group(override):
        return word
    key, _, written = word.partition("=")
    value, present = override.value(), OmegaConf.select(composed, override.key_or_group)
    if isinstance(present, str) and _is_misread(value):
        return f"{key}={quoted(written)}"
    if isinstance(present, ListConfig) and isinstance(value, list):
        items = split_values(written.strip()[1:-1])
        if present._metadata.element_type is str and len(items) == len(value):
            pairs = zip(value, items, strict=True)
            texts = [quoted(item) if _is_misread(each) else item for each, item in pairs]
            return f"{key}=[{','.join(texts)}]"
    return word


def _is_misread(value: object) -> bool:
    """Whether hydra's grammar made something other than text of what was written."""
    return isinstance(value, (bool, int, float))


def _is_group(override: Override) -> bool:
    return override.key_or_group in _GROUPS


def _check_group_value(override: Override, task: str, roots: Iterable[Path]) -> None:
    group, name = override.key_or_group, str(override.value())
    if group not in _GROUPS:
        return
    if group not in groups_of(task):
        raise ConfigurationError(
            f"{group}= does not belong to the task {task!r}; "
            f"its groups: {', '.join(groups_of(task)) or 'none'}"
        )
    choices = group_choices(group, roots)
    if name not in choices:
        raise ConfigurationError(f"{group}={name} is not offered: {nearest(name, choices)}")


def _check_key(override: Override, keys: Sequence[str], task: str) -> None:
    key = override.key_or_group
    if key in keys:
        return
    if any(known.startswith(key + ".") for known in keys):
        raise ConfigurationError(
            f"{key} is a section, not a value: set one of its keys, "
            f"e.g. {next(k for k in keys if k.startswith(key + '.'))}=…"
        )
    hint = nearest(key, [*keys, *groups_of(task)])
    advice = hint if hint.startswith("did") else "--help lists the keys"
    raise ConfigurationError(f"unknown key {key!r} for the task {task!r}: {advice}")


def _leaf_keys(config: Mapping[Any, Any], prefix: str = "") -> Iterable[str]:
    for name in config:
        value = OmegaConf.to_container(config) if name is None else config[name]
        if isinstance(value, DictConfig):
            yield from _leaf_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _sentence(error: BaseException) -> str:
    """Return what an exception says, as one line."""
    text = str(error) if error.__cause__ is None else f"{error}: {error.__cause__}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    first = lines[0] if lines else type(error).__name__
    if first.endswith(":") and len(lines) > 1:  # hydra names the file first, then what is wrong
        first = f"{first} {lines[1]}"
    if "Key 'experiment' not in" in first:
        first += " (an experiment's file begins with the line # @package _global_)"
    return f"{key}: {first}" if key and key not in first else first
