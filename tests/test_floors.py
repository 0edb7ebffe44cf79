"""The floors of the package: who may import whom, no circle, no file name twice.

An import runs down the floors below, or to the left on a floor whose packages have an order.
Imports inside functions count; those for type checkers alone do not.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "t2i_hpc"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("common",),
    ("config", "models", "losses"),
    ("data", "systems", "runs", "cli"),
    ("sampling", "cluster", "convert"),
    ("training", "evaluation"),
    ("reporting", "serving", "train", "evaluate", "generate"),
    ("cancel", "checkpoints", "pretrain", "report", "serve", "shards", "status", "table", "fetch"),
    ("launching",),
    ("launch",),
)
ORDERED = ("data", "systems", "runs", "cli")  # on their floor each may import those to its left
ENTRY_POINTS = {"__init__", "__main__"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {module_name(p): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def imported(node: ast.AST, top_level: bool) -> Iterator[str]:
    """Yield our modules that a tree imports, also inside functions unless `top_level`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("t2i_hpc"):
            for alias in child.names:
                longer = f"{child.module}.{alias.name}"
                yield longer if longer in modules() else str(child.module)
        elif not (top_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imported(child, top_level)


def package(module: str) -> str:
    """Return the floor's name of a module: its package, or itself below t2i_hpc."""
    return module.split(".")[1] if "." in module else ""


def upward() -> set[tuple[str, str]]:
    """Return pairs of packages of which the first imports the second against the floors."""
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    found = set()
    for module, tree in modules().items():
        for other in imported(tree, top_level=False):
            ours, theirs = package(module), package(other)
            if ours == theirs or "" in (ours, theirs):
                continue
            lower = height[theirs] < height[ours]
            left = (
                ours in ORDERED
                and theirs in ORDERED
                and ORDERED.index(theirs) < ORDERED.index(ours)
            )
            if not (lower or left):
                found.add((ours, theirs))
    return found


def test_every_package_is_on_a_floor() -> None:
    named = {name for names in FLOORS for name in names}
    assert {package(module) for module in modules()} - {""} == named


def test_imports_run_downward() -> None:
    assert not upward()


def test_no_circle() -> None:
    graph = {name: {*imported(tree, top_level=True)} - {name} for name, tree in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_no_file_name_twice() -> None:
    stems = Counter(path.stem for path in PACKAGE.rglob("*.py") if path.stem not in ENTRY_POINTS)
    assert not {name for name, count in stems.items() if count > 1}
