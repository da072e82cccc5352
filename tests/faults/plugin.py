"""Scenarios, wherever they stand: their mark, what the user reads, and their results for the tables of docs/faults.md.

Every test in tests/faults is one; so is a test elsewhere that has the mark. `<ANEMONE_HOME>/faults/<page>.json`, a page
being a test file (`jobs/merge/test_merge`), has by test its scenario and what became of it the last time that it ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from include.home import PROJECT, home

_FOLDER = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scenarios", type=Path, help="write the collected scenarios to this file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "scenario(given, when, then): a row of docs/faults.md")
    # Before a fixture gives a test a home of its own.
    config.stash[_FOLDER] = home() / "faults"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("scenario") is None:
            raise pytest.UsageError(f"{item.nodeid} has no scenario: see tests/faults/scenario.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("scenarios")
    if file is not None:
        marked = [(item, item.get_closest_marker("scenario")) for item in session.items]
        entries = [{"page": _page(item), "test": item.name, **marker.kwargs} for item, marker in marked if marker]
        file.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def reads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], None]:
    """Keep the message that the user really got to read, for docs/faults.md; the test's own folder is `…`."""
    folder = re.compile(rf"{re.escape(str(tmp_path_factory.getbasetemp()))}(/test_\w+)?")

    def keep(message: object) -> None:
        plain = " ".join(str(message).split())
        request.node.user_properties.append(("reads", folder.sub("…", plain)))

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    marker = item.get_closest_marker("scenario")
    # A failed teardown comes after the test's own outcome, and counts.
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        messages = [message for name, message in item.user_properties if name == "reads"]
        result = {"outcome": report.outcome, "seconds": round(report.duration, 1), "reads": messages}
        _keep(item, {**marker.kwargs, **result})
    return report


def _keep(item: pytest.Item, result: dict[str, Any]) -> None:
    file = item.config.stash[_FOLDER] / f"{_page(item)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**results, item.name: result}, indent=1, ensure_ascii=False))


def _page(item: pytest.Item) -> str:
    return item.path.relative_to(PROJECT / "tests").with_suffix("").as_posix()
