"""README, docs/ and the other pages name only what there is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from include.home import PROJECT
from include.recipes import resolve
from include.statistics import rows_to_bring, rows_to_compare

PAGES = [
    *(PROJECT / page for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *PROJECT.glob("docs/**/*.md"),
]
GENERATED = PROJECT / "docs" / "faults.md"
"""Holds messages as users read them, with paths and commands of the moment."""

README_BYTES = 12_288
GLOSSARY_ENTRIES = 12

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?:dags|docs|examples|include|jobs|operators|plugins|requirements|tests|\.ci|\.github)/[\w./-]*")
MODULE = re.compile(r"python -m ([\w.]+)(?![\w.<])")
TARGET = re.compile(r"\bmake ([a-z-]+)")


def text(page: Path) -> str:
    """Return a page without its generated part."""
    whole = page.read_text(encoding="utf-8")
    return whole.partition("<!-- faults -->")[0] if page == GENERATED else whole


def code(page: Path) -> Iterator[str]:
    """Yield every code block and every piece of inline code of a page."""
    yield from FENCE.findall(text(page))
    yield from CODE.findall(FENCE.sub("", text(page)))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that a Git host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {_anchor(heading) for heading in headings}


def _anchor(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    kept = (char for char in plain if char in " -_" or unicodedata.category(char)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def named(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


@pytest.fixture(params=PAGES, ids=named)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_readme_is_the_first_ten_minutes_and_no_more() -> None:
    assert (PROJECT / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("file", ["README.md", "dags/customize.py"])
def test_readme_and_form_name_the_rows_that_the_gate_asks_for(file: str) -> None:
    """The gate's own message counts with the same function (jobs/check/preflight.py)."""
    text = (PROJECT / file).read_text(encoding="utf-8")
    for name in ("own/0.8M_lora_cpu", "qwen2_5/0.5B_lora_cpu"):
        recipe = resolve(name)
        limits, share = recipe.limits("evaluation"), recipe.section("curate").config["heldout_fraction"]
        assert share == 0.1, "a tenth"
        alike = rows_to_compare(limits["non_inferiority_margin"], limits["confidence"])
        assert alike is not None
        assert f"`{name}`" in text
        assert all(f"{rows_to_bring(rows, share):,}" in text for rows in (limits["min_rows"], alike))
        if file == "README.md":
            assert f"below {limits['min_rows']}" in text and f"{alike} held-out rows" in text


def test_the_glossary_holds_at_most_a_dozen_words() -> None:
    entries = re.findall(r"^- \*\*(.+?)\*\*", (PROJECT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert 0 < len(entries) <= GLOSSARY_ENTRIES
    assert entries == sorted(entries)


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((PROJECT / "README.md").read_text(encoding="utf-8")))
    assert {named(page) for page in PROJECT.glob("docs/*.md")} <= linked


def test_links_and_anchors_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text(page))):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_paths_of_the_repository_exist(page: Path) -> None:
    paths = {piece for piece in CODE.findall(FENCE.sub("", text(page))) if PATH.fullmatch(piece)}
    paths |= {word for block in FENCE.findall(text(page)) for word in block.split() if PATH.fullmatch(word)}
    assert sorted(path for path in paths if not (PROJECT / path).exists()) == []


def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {target for piece in code(page) for target in TARGET.findall(piece)}
    assert used - targets == set()


def test_modules_that_are_run_exist(page: Path) -> None:
    modules = {module for piece in code(page) for module in MODULE.findall(piece)}
    assert sorted(module for module in modules if not _is_runnable(module)) == []


def _is_runnable(module: str) -> bool:
    path = PROJECT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
