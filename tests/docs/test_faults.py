"""docs/faults.md names the scenarios of the tests, all of them and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from include.home import PROJECT
from tests.faults.published import (
    BEGIN,
    END,
    NOT_RUN,
    PAGE,
    PARTS,
    CollectedTest,
    Scenario,
    collected_tests,
    published,
    rows_of,
)

SCENARIO = Scenario("Data", "a file | with a <pipe>", "it is read", "nothing breaks & all is well")
TEST = CollectedTest("faults/jobs/test_data", "test_pipe[a]", SCENARIO)


def page(tables: str) -> str:
    return f"# Faults\n\n{BEGIN}\n{tables}{END}\n"


def results(folder: Path, **outcomes: str) -> Path:
    kept = {name: {"outcome": outcome, "reads": ["read /tmp/x/test_0/a.jsonl"]} for name, outcome in outcomes.items()}
    file = folder / f"{TEST.page}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(kept))
    return folder


def test_the_page_names_every_scenario_and_no_other() -> None:
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    scenarios = {test.scenario for test in collected_tests()}
    remedy = "run `.anemone/venvs/airflow/bin/python -m tests.faults.published`"
    assert scenarios - set(rows) == set(), f"not on the page: {remedy}"
    assert set(rows) - scenarios == set(), f"on the page, and no scenario any more: {remedy}"


def test_a_scenario_without_a_result_is_marked_as_such(tmp_path: Path) -> None:
    (row,) = rows_of(page(published([TEST], tmp_path, page("")))).values()
    assert (row.given, row.held, row.reads) == (SCENARIO.given, NOT_RUN, "")


def test_tests_of_one_scenario_are_one_row(tmp_path: Path) -> None:
    other = TEST._replace(name="test_pipe[b]")
    tables = published([TEST, other], results(tmp_path, **{TEST.name: "passed", other.name: "failed"}), page(""))
    (row,) = rows_of(page(tables)).values()
    assert (row.held, row.reads) == ("1 of 2", "read …/a.jsonl")
    assert "1 scenarios, 1 of 2 tests held." in tables


@pytest.mark.parametrize("outcomes", [{}, {TEST.name: "skipped"}, {"test_that_was_renamed": "passed"}])
def test_a_row_stays_until_its_tests_run_again(tmp_path: Path, outcomes: dict[str, str]) -> None:
    first = tmp_path / "first"
    first.mkdir()
    before = page(published([TEST], results(first, **{TEST.name: "passed"}), page("")))
    assert page(published([TEST], results(tmp_path, **outcomes), before)) == before


def test_what_is_no_scenario_any_more_goes(tmp_path: Path) -> None:
    before = page(published([TEST], tmp_path, page("")))
    other = TEST._replace(scenario=SCENARIO._replace(when="it is written"))
    assert list(rows_of(page(published([other], tmp_path, before)))) == [other.scenario]


def test_every_file_with_scenarios_has_its_part_of_the_page() -> None:
    tests = PROJECT / "tests"
    marked = (file for file in tests.rglob("test_*.py") if "import scenario\n" in file.read_text(encoding="utf-8"))
    assert {file.relative_to(tests).with_suffix("").as_posix() for file in marked} == set(PARTS)
