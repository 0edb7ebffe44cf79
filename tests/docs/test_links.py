"""Links, paths and tests that the documents name are there; the site's tool is not needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate_reference import FOLDER, NAMES, pages
from tests.support.documents import PAGES, ROOT, spans_of

DOCS = ROOT / "docs"
ALL = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "findings" / "README.md"]
GENERATED = {FOLDER / name for name in NAMES}  # by make docs
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FOLDERS = r"(?:benchmarks|configs|docs|findings|slurm|t2i_hpc|tests|shards/\w+/README)"
_PATH = re.compile(rf"{_FOLDERS}[/.][\w./*-]+(?:::\w+)?")
_PAGE_IN_CODE = re.compile(r"\bdocs/[\w/-]+\.md")
NOT_OURS = {"docs/generated/"}  # make makes them


def text_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    text = pages()[page.name] if page in GENERATED else page.read_text(encoding="utf-8")
    return _FENCE.sub("", text)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that both GitHub and the site give a page's headings."""
    found = set()
    for heading in _HEADING.findall(text_of(page)):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip()
        github, site = re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)
        if github == site and plain.isascii():
            found.add(github)
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_anchors(page: Path) -> None:
    for link in _LINK.findall(text_of(page)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() or target in GENERATED, link
        assert not anchor or anchor in anchors_of(target), link
        if page.is_relative_to(DOCS):  # the site has nothing else
            assert target.is_relative_to(DOCS), f"{link} leaves docs/: name the path instead"


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_tests_that_a_text_names_are_there(page: Path) -> None:
    for span in spans_of(page.read_text(encoding="utf-8")):
        if not (found := _PATH.fullmatch(span)) or span in NOT_OURS or "NAME" in span:
            continue
        name, _, function = found[0].partition("::")
        assert list(ROOT.glob(name)) or is_module(name), span
        assert not function or f"def {function}(" in (ROOT / name).read_text(encoding="utf-8"), span


def is_module(dotted: str) -> bool:
    """Whether a dotted name is one of our modules, or a name in one of them."""
    head, _, name = dotted.rpartition(".")
    inside = ROOT / f"{head.replace('.', '/')}.py"
    module = ROOT / dotted.replace(".", "/")
    if module.is_dir() or module.with_suffix(".py").is_file():
        return True
    return inside.is_file() and re.search(rf"\b{name}\b", inside.read_text("utf-8")) is not None


def test_every_guarantee_names_a_test() -> None:
    for section in text_of(DOCS / "guarantees.md").split("\n## ")[1:]:
        points = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
        assert points, section
        for point in points:
            assert "`tests/" in point, point


def test_every_page_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {*DOCS.rglob("*.md"), *GENERATED}
    assert listed == {str(page.relative_to(DOCS)) for page in there}


def test_pages_that_messages_name_are_there() -> None:
    files = [*(ROOT / "t2i_hpc").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
    for file in [*files, *(ROOT / "shards").glob("*/README.md"), *(ROOT / "slurm").glob("*.sh")]:
        for name in _PAGE_IN_CODE.findall(file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{file}: {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
