"""Declarations of configuration values: checks and identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.fields import check, entries, identity, section, setting
from t2i_hpc.config.systems import SYSTEM_SCHEMAS
from t2i_hpc.config.tasks import TASK_SCHEMAS


@dataclass
class Inner:
    rate: float = setting(0.5, "a rate", unit="images", minimum=0.0, maximum=1.0)
    folder: str = setting("x", "a place", identity=False)


@dataclass
class Outer:
    names: list[str] = setting(["a"], "names", choices=("a", "b"))
    inner: Inner = section(Inner)


def test_entries_have_dotted_keys_in_order() -> None:
    assert [entry.key for entry in entries(Outer())] == ["names", "inner.rate", "inner.folder"]


def test_lists_are_not_shared() -> None:
    first = Outer()
    first.names.append("b")
    assert Outer().names == ["a"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Outer(inner=Inner(rate=-1.0)), "inner.rate=-1.0 is too small: at least 0 images"),
        (Outer(inner=Inner(rate=2.0)), "inner.rate=2.0 is too large: at most 1 images"),
        (Outer(inner=Inner(rate=math.nan)), "inner.rate=nan is not a finite number"),
        (Outer(inner=Inner(rate=math.inf)), "inner.rate=inf is not a finite number"),
        (Outer(names=["c"]), "names=c is not offered"),
    ],
)
def test_check_refuses(config: Outer, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        check(config)


def test_identity_leaves_out_what_does_not_decide_the_result() -> None:
    assert identity(Outer()) == {"names": ["a"], "inner.rate": 0.5}


def test_a_setting_that_came_later_leaves_older_runs_their_identity() -> None:
    @dataclass
    class Later:
        old: int = setting(1, "a number")
        new: str = setting("as before", "a choice", neutral="as before")
        way: str = setting("auto", "a way", choices=("auto", "slow"), counts_as={"auto": "slow"})

    assert identity(Later()) == identity(Later(way="slow")) == {"old": 1, "way": "slow"}
    assert identity(Later(new="other")) == {"old": 1, "new": "other", "way": "slow"}
    assert identity(Later(way="fast"))["way"] == "fast"


def test_of_a_file_the_content_counts(tmp_path: Path) -> None:
    @dataclass
    class Weights:
        weights: str = setting("", "weights", file=True)

    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("same")
    second.write_text("same")
    assert identity(Weights(str(first))) == identity(Weights(str(second)))
    second.write_text("other")
    assert identity(Weights(str(first))) != identity(Weights(str(second)))
    with pytest.raises(ConfigurationError, match="weights=/nowhere: there is no such file"):
        identity(Weights("/nowhere"))


@pytest.mark.parametrize("schema", [*TASK_SCHEMAS.values(), *SYSTEM_SCHEMAS.values()])
def test_every_shipped_value_is_explained_and_its_default_is_valid(schema: type) -> None:
    check(schema())
    for entry in entries(schema()):
        assert len(entry.meaning.doc) > 5, entry.key
