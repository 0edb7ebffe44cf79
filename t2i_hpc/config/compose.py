"""From overrides to a typed, checked configuration, and from YAML back to one.

hydra composes the dataclass schemas, the YAML files of ``configs/`` over them, and the overrides.
What it does not give is a sentence a person can act on, so every override is checked first:
unknown keys and group values name their nearest neighbors. No value of a user is instantiated.

YAML 1.1 reads ``24:00:00`` as 86400, ``012`` as 10, ``1e5`` as a float and ``on`` as true,
whatever the key is. Here every plain value but null stays text, and the schema turns it into what
the key is: a time or a name stays as it was written, quoted or not.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.common.files import resource
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.fields import check, resolve_aliases
from t2i_hpc.config.grammar import parse, quoted, refuse_axis, written_value
from t2i_hpc.config.systems import SYSTEM_SCHEMAS
from t2i_hpc.config.tasks import GROUP_FOLDERS, GROUPS, TASK_GROUPS, TASK_SCHEMAS, EvaluateConfig

ConfigT = TypeVar("ConfigT")
_stored: set[tuple[str | None, str]] = set()
_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
_HEADER_BYTES = 512


def compose_config(
    task: str, arguments: Sequence[str], expected: type[ConfigT], folder: Path | None = None
) -> ConfigT:
    """Compose, type-check and range-check the configuration of `task`.

    Args:
        task: a key of ``TASK_SCHEMAS``.
        arguments: ``key=value`` and ``group=name`` as typed.
        expected: the dataclass of the task.
        folder: a folder of user-defined configuration files, which go before the shipped ones.

    Raises:
        ConfigurationError: an unknown key or group value, a wrong type, a value out of range.
    """
    overrides = parse(arguments)
    for override in overrides:
        refuse_axis(override)
    groups = [o for o in overrides if _is_group(o.key_or_group, task)]
    for override in groups:
        _check_group_value(override, task, folder)
    composed = _composed(task, tuple(_chosen(o) for o in groups), folder)
    keys = list(_leaf_keys(composed))
    values = [o for o in overrides if o not in groups]
    for override in values:
        _check_key(override, keys, task)
    for override, value in [(each, written_value(each, composed)) for each in values]:
        _set(composed, override, value)
    config = to_dataclass(composed, expected)
    settings = getattr(config, "evaluation", None)
    if folder and isinstance(settings, EvaluationConfig):
        settings.presets = settings.presets or str(folder)
    return config


_ALL_GROUPS = {group for groups in TASK_GROUPS.values() for group in groups}


def _is_group(name: str, task: str) -> bool:
    """Return whether `name` is a group; one that is a key of another task is a group here only."""
    return name in TASK_GROUPS[task] or (name in _ALL_GROUPS and name not in GROUP_FOLDERS)


def _chosen(override: Override) -> str:
    """Return the override of a group as hydra knows it."""
    group, line = override.key_or_group, override.input_line or ""
    return GROUP_FOLDERS.get(group, group) + line.removeprefix(group)


def group_choices(group: str, folder: Path | None = None) -> list[str]:
    """Return the names that a group offers: shipped, registered, and those of a user's folder."""
    roots = [resource("configs"), *([folder] if folder else [])]
    within = GROUP_FOLDERS.get(group, group)
    files = {path.stem for root in roots for path in (root / within).glob("*.yaml")}
    return sorted(files | set(GROUPS.get(group, ())))


def _composed(task: str, groups: tuple[str, ...], folder: Path | None) -> DictConfig:
    """Compose the chosen files of a task; those of a user's folder are read each time."""
    return _compose(task, [*groups], folder) if folder else copy.deepcopy(_shipped(task, groups))


@functools.lru_cache(maxsize=256)
def _shipped(task: str, groups: tuple[str, ...]) -> DictConfig:
    return _compose(task, [*groups], None)


def _set(composed: DictConfig, override: Override, value: object) -> None:
    """Set a value as hydra does, which would compose all files once more for it."""
    try:
        OmegaConf.update(composed, override.key_or_group, value, merge=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{override.input_line}: {reason}") from error


def _compose(task: str, overrides: list[str], folder: Path | None) -> DictConfig:
    _register()
    if folder:
        overrides = [*overrides, f"hydra.searchpath=[{quoted(f'text://{folder.resolve()}')}]"]
    root = str(resource("configs"))
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings(), initialize_config_dir(root, version_base="1.3"):
            # That a user's file is validated by the schema of its name is what we want.
            warnings.filterwarnings("ignore", r"\s*'.*' is validated against ConfigStore schema")
            return compose(f"task_{task}", overrides=overrides)
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise ConfigurationError(f"a configuration file is no YAML: {told}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_sentence(error)) from error


def _register() -> None:
    """Tell hydra of the tasks, their schemas and what their groups offer."""
    OmegaConf.register_new_resolver("package_file", _package_file, replace=True)
    Plugins.instance().register(TextSource)
    for task, groups in TASK_GROUPS.items():
        chosen = [{group: name} for group, name in groups.items() if name]
        optional = [{GROUP_FOLDERS.get(g, g): None} for g, name in groups.items() if not name]
        defaults = [f"schema_{task}", *chosen, "_self_", *optional]
        _store(None, f"schema_{task}", TASK_SCHEMAS[task])
        _store(None, f"task_{task}", dict, defaults=defaults)
    for group, choices in GROUPS.items():
        for name, schema in choices.items():
            _store(group, name, schema, **({} if schema is EvaluationConfig else {"name": name}))


def _store(group: str | None, name: str, make: Callable[..., Any], /, **values: Any) -> None:
    if (group, name) not in _stored:  # once: it takes long
        ConfigStore.instance().store(name, make(**values), group)
        _stored.add((group, name))


def _package_file(package: str, path: str) -> str:
    """Return the path of a file that comes inside a package: ``${package_file:name,a/b}``."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise ConfigurationError(f"{path} comes inside a package: pip install {name}")
    return str(Path(spec.origin).parent / path)


def _check_group_value(override: Override, task: str, folder: Path | None) -> None:
    group, name = override.key_or_group, str(override.value())
    if group not in TASK_GROUPS[task]:
        raise ConfigurationError(
            f"{group}= does not belong to the task {task!r}; "
            f"its groups: {', '.join(TASK_GROUPS[task]) or 'none'}"
        )
    choices = group_choices(group, folder)
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
    hint = nearest(key, [*keys, *TASK_GROUPS[task]])
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


def from_yaml(path: Path, expected: type[ConfigT], key: str = "") -> ConfigT:
    """Read a configuration that :func:`to_yaml` wrote, or that a file has under a key.

    Raises:
        ConfigurationError: the file is damaged or of an incompatible version.
    """
    try:
        loaded = cast(DictConfig, load_yaml(path.read_text(encoding="utf-8")))
        loaded = cast(DictConfig, loaded[key]) if key else loaded
        schema = OmegaConf.structured(expected)
        if "system" in loaded:
            schema.system = OmegaConf.structured(_system_schema(loaded.system.name))
        return to_dataclass(cast(DictConfig, OmegaConf.merge(schema, loaded)), expected)
    except (
        ConfigurationError,
        OmegaConfBaseException,
        KeyError,
        OSError,
        AttributeError,
        yaml.YAMLError,
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
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def preset_of(settings: EvaluationConfig) -> EvaluationConfig | None:
    """Return the settings of the file whose ``protocol`` these settings bear, None without one.

    A file of ``settings.presets`` goes before a shipped one.
    """
    own = Path(settings.presets) if settings.presets else None
    for root in [*([own] if own else []), resource("configs")]:
        for path in sorted((root / "evaluation").glob("*.yaml")):
            if _protocol_in(path) == settings.protocol:
                chosen = [f"evaluation={path.stem}"]
                return compose_config("evaluate", chosen, EvaluateConfig, own).evaluation
    return None


def changed_settings(settings: EvaluationConfig) -> frozenset[str]:
    """Return the names of the settings that differ from the preset's file."""
    preset = preset_of(settings)
    if preset is None:
        return frozenset()
    names = (field.name for field in dataclasses.fields(settings))
    return frozenset(name for name in names if getattr(settings, name) != getattr(preset, name))


def _protocol_in(path: Path) -> object:
    content = OmegaConf.load(path)
    return content.get("protocol") if isinstance(content, DictConfig) else None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain values as text, and refuses a key that stands twice."""

    yaml_implicit_resolvers: ClassVar[dict[Any, list[Any]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands there twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load_yaml(text: str) -> Container:
    """Read YAML, plain values as text.

    Raises:
        YAMLError: it is none.
    """
    content = yaml.load(text, Loader=_Loader)
    return OmegaConf.create({} if content is None else content)


class TextSource(ConfigSource):
    """A folder of configuration files for hydra, ``text://FOLDER``, read by :func:`load_yaml`."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of its addresses."""
        return "text"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return one file's configuration.

        Raises:
            ConfigLoadError: it is not there.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        text = path.read_text(encoding="utf-8")
        header = ConfigSource._get_header_dict(text[:_HEADER_BYTES])
        where = f"{self.scheme()}://{self.path}"
        return ConfigResult(self.provider, where, load_yaml(text), header=header)

    def available(self) -> bool:
        """Whether the folder is there."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Whether a path in the folder is a folder."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether a path in the folder is a file."""
        return Path(self.path, self._normalize_file_name(config_path)).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names in a folder."""
        names: list[str] = []
        for path in Path(self.path, config_path).iterdir():
            within = str(Path(config_path, path.name))
            self._list_add_result(names, within, path.name, results_filter)
        return sorted(set(names))
