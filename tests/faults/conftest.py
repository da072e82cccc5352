"""Every test here is a scenario; what became of each is kept for the list in the README.

A session writes `<ANEMONE_HOME>/faults/<environment>-<page>.json` for every page (test file) that it ran to its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from include.laptop.home import PROJECT, home

_KEPT = pytest.StashKey[dict[str, dict[tuple[str, str, str], dict]]]()
_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "scenario(given, when, then): a row of the published list of faults")
    config.stash[_KEPT] = {}
    config.stash[_FOLDER] = home() / "faults"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("scenario") is None:
            raise pytest.UsageError(f"{item.nodeid} says no scenario: see tests/faults/scenario.py")


@pytest.fixture
def reads(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep the sentence that the user really got to read, for the published list."""

    def keep(sentence: str) -> None:
        request.node.user_properties.append(("reads", " ".join(str(sentence).split())))

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
    report = yield
    marker = item.get_closest_marker("scenario")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        page = item.config.stash[_KEPT].setdefault(Path(item.path).relative_to(PROJECT).as_posix(), {})
        key = tuple(marker.kwargs[part] for part in ("given", "when", "then"))
        row = page.setdefault(key, {"held": 0, "tried": 0, "skipped": 0, "seconds": 0.0, "reads": []})
        row["skipped" if report.outcome == "skipped" else "tried"] += 1
        row["held"] += report.outcome == "passed"
        row["seconds"] += report.duration
        row["reads"] += [sentence for name, sentence in item.user_properties if name == "reads"]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.stash[_FOLDER]
    for page, rows in session.config.stash[_KEPT].items():
        folder.mkdir(parents=True, exist_ok=True)
        document = [dict(zip(("given", "when", "then"), key, strict=True)) | row for key, row in rows.items()]
        file = folder / f"{Path(page).parent.name}-{Path(page).stem}.json"
        file.write_text(json.dumps({"page": page, "python": sys.version.split()[0], "scenarios": document}, indent=1))
