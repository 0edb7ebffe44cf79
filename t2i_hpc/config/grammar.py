"""Overrides as typed on a command line: ``key=value`` and ``group=name`` by hydra's grammar.

hydra refuses or misreads what a person means: a name with a space, the name 1e5 (100000.0 to
hydra), braces in a list of tars. Here such values are quoted before hydra sees them, and what it
cannot read is refused in one sentence. Unknown keys are refused in ``compose.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from t2i_hpc.common.errors import ConfigurationError

_GRAMMAR = re.compile(r"""["'\[\]{},\\$]""")


def parse(arguments: Sequence[str]) -> list[Override]:
    """Parse ``key=value`` arguments by hydra's grammar.

    Raises:
        ConfigurationError: an argument that is no assignment.
    """
    parsed = []
    for argument in arguments:
        if "=" not in argument or argument.startswith(("~", "+")):
            raise ConfigurationError(
                f"cannot read {argument!r}: settings are written key=value, e.g. seed=2"
            )
        try:
            parsed += _read(argument)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigurationError(
                f"cannot read {argument!r} ({reason}); put quotes around values with spaces, "
                "brackets or commas"
            ) from error
    return parsed


def _read(argument: str) -> list[Override]:
    """Parse an argument; a value outside hydra's grammar, as a name with a space, is text."""
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides([argument])
    except HydraException:
        key, _, value = argument.partition("=")
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
    """Refuse an override with several values.

    Args:
        override: as parsed.
        advice: what to do if several values are meant.

    Raises:
        ConfigurationError: names the override and what to do.
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


def written_value(override: Override, composed: DictConfig) -> object:
    """Return the value of an override: text as it was written, where its key holds text.

    hydra's grammar would make 100000.0 of the name 1e5, and True of true; also inside a list.
    """
    written = (override.input_line or "").partition("=")[2]
    value, present = override.value(), OmegaConf.select(composed, override.key_or_group)
    if isinstance(present, str) and _is_misread(value):
        return written
    if isinstance(present, ListConfig) and isinstance(value, list):
        items = split_values(written.strip()[1:-1])
        if present._metadata.element_type is str and len(items) == len(value):
            pairs = zip(value, items, strict=True)
            return [item if _is_misread(each) else each for each, item in pairs]
    return value


def _is_misread(value: object) -> bool:
    """Whether hydra's grammar made something other than text of what was written."""
    return isinstance(value, (bool, int, float))
