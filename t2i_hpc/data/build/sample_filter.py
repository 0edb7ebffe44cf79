"""``filter="width >= 256 and aesthetic > 5"``: which samples a build takes.

The text is parsed as a Python expression, of which a few kinds of nodes are known; nothing is
evaluated by Python itself. What a sample does not say is None, and a comparison with it is false,
as is one of a text with a number.
"""

from __future__ import annotations

import ast
import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i_hpc.common.errors import ConfigurationError, nearest
from t2i_hpc.data.build.sources.sample import SourceSample
from t2i_hpc.data.image_headers import dimensions

Values = Mapping[str, Any]
_Term = Callable[[Values], Any]
_NUMBERS = (bool, int, float)
ALWAYS_SAID = ("width", "height", "captions")
_MOST_NODES = 200
_LARGEST = 1 << 63  # of a number that comes out
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "len": len,
    "lower": str.lower,
}
_CAN = (
    "names, numbers, texts, comparisons, and, or, not, in, + - * / // %, "
    f"{', '.join(f'{name}()' for name in _FUNCTIONS)}"
)


class SampleFilter:
    """A condition on samples.

    Args:
        text: the expression.

    Attributes:
        names: what it asks of a sample.

    Raises:
        ConfigurationError: it is no such expression.
    """

    def __init__(self, text: str) -> None:
        self.text, self.names = text, set[str]()
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ConfigurationError(
                f"filter={text} is no expression ({reason}): write e.g. "
                "filter='width >= 256 and aesthetic > 5'"
            ) from error
        if sum(1 for _ in ast.walk(tree)) > _MOST_NODES:
            raise ConfigurationError("filter= is too long: make the data set smaller in steps")
        self._term = self._compiled(tree.body)

    def __call__(self, values: Values) -> bool:
        """Whether a sample is taken, by what is said of it."""
        return bool(self._term(values))

    def __getstate__(self) -> str:
        return self.text

    def __setstate__(self, text: str) -> None:
        self.__init__(text)  # type: ignore[misc]

    def check(self, known: set[str]) -> None:
        """Refuse names that no sample has.

        Raises:
            ConfigurationError: names the nearest of those there are.
        """
        for name in sorted(self.names - known):
            there = f"{nearest(name, sorted(known))}" if known else "the samples say nothing"
            raise ConfigurationError(f"filter={self.text}: no sample says {name!r}: {there}")

    def _compiled(self, node: ast.expr) -> _Term:  # noqa: PLR0911 - one line a kind of node
        if isinstance(node, ast.Constant) and type(node.value) in (*_NUMBERS, str, type(None)):
            return lambda _, value=node.value: value  # type: ignore[misc]
        if isinstance(node, ast.Name):
            self.names.add(node.id)
            return lambda values, name=node.id: values.get(name)  # type: ignore[misc]
        if isinstance(node, (ast.Tuple, ast.List)):
            terms = [self._compiled(one) for one in node.elts]
            return lambda values: tuple(term(values) for term in terms)
        if isinstance(node, ast.BoolOp):
            return self._junction(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            inner = self._compiled(node.operand)
            if isinstance(node.op, ast.Not):
                return lambda values: not inner(values)
            return lambda values: _arithmetic(operator.sub, 0, inner(values))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            first, second = self._compiled(node.left), self._compiled(node.right)
            action = _ARITHMETIC[type(node.op)]
            return lambda values: _arithmetic(action, first(values), second(values))
        if isinstance(node, ast.Compare) and all(type(one) in _COMPARISONS for one in node.ops):
            return self._comparison(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self._compiled(one) for one in node.args])
        raise ConfigurationError(
            f"filter={self.text}: {ast.unparse(node)[:60]!r} is not offered: write {_CAN}"
        )

    def _junction(self, node: ast.BoolOp) -> _Term:
        terms = [self._compiled(one) for one in node.values]
        if isinstance(node.op, ast.And):
            return lambda values: all(term(values) for term in terms)
        return lambda values: any(term(values) for term in terms)

    def _comparison(self, node: ast.Compare) -> _Term:
        terms = [self._compiled(one) for one in (node.left, *node.comparators)]
        actions = [_COMPARISONS[type(one)] for one in node.ops]

        def compared(values: Values) -> bool:
            found = [term(values) for term in terms]
            pairs = zip(actions, found[:-1], found[1:], strict=True)
            return all(_is_so(action, one, other) for action, one, other in pairs)

        return compared

    def _call(self, name: str, terms: list[_Term]) -> _Term:
        if name not in _FUNCTIONS:
            raise ConfigurationError(f"filter={self.text}: {name}() is not offered: write {_CAN}")
        action = _FUNCTIONS[name]

        def called(values: Values) -> Any:
            try:
                return action(*(term(values) for term in terms))
            except (TypeError, ValueError):
                return None

        return called


def filtered(samples: Sequence[SourceSample], wanted: SampleFilter) -> list[SourceSample]:
    """Return the samples that are taken; those that cannot be used stay, to be listed.

    Headers of images are read only where width or height are asked for and not said.

    Raises:
        ConfigurationError: no sample says what is asked for.
    """
    found, said = list[SourceSample](), set[str]()
    for sample in samples:
        if sample.unfit is not None or wanted(values_of(sample, wanted)):
            found.append(sample)
        said.update(sample.source or ())
    wanted.check(said | {*ALWAYS_SAID})
    return found


def values_of(sample: SourceSample, wanted: SampleFilter) -> Values:
    """Return what is said of a sample; its size by its header, if only that says it."""
    values: dict[str, Any] = {"captions": sample.captions, **(sample.source or {})}
    if wanted.names & {"width", "height"} - values.keys():
        with contextlib.suppress(ValueError):  # damaged images are rejected later
            _, width, height = dimensions(sample.read())
            values = {"width": width, "height": height, **values}
    return values


def _is_so(action: Callable[[Any, Any], Any], one: Any, other: Any) -> bool:
    try:
        return bool(action(one, other))
    except TypeError:
        return False


def _arithmetic(action: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """Return a number; None where there is none, as in a division by zero."""
    if not (isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS)):
        return None
    try:
        found = action(one, other)
    except (ArithmeticError, ValueError):
        return None
    return found if abs(found) < _LARGEST else None
