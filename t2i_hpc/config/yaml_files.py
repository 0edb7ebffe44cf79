"""YAML files whose values mean what a person wrote.

YAML 1.1 reads ``24:00:00`` as 86400, ``012`` as 10, ``1e5`` as a float and ``on`` as true, whatever
the key is. Here every plain value but null stays text, and the schema of the configuration turns it
into what the key is: a time or a name stays as it was written, quoted or not.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import Container, OmegaConf

_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
_HEADER_BYTES = 512


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


def register_source() -> None:
    """Tell hydra of ``text://``."""
    Plugins.instance().register(TextSource)
