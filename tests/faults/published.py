"""Writes the tables of docs/faults.md: `python -m tests.faults.published`, in the environment `airflow`.

Scenarios are collected from the test files that PARTS names, nothing is run for that. What became of each comes from
what the last run of its test kept (`make test-faults` runs them all); a scenario that has not run since keeps the row
that stands on the page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

from include.home import PROJECT, home
from include.laptop.home import python_of

PAGE = PROJECT / "docs" / "faults.md"
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
NOT_RUN = "not run yet"
ENVIRONMENTS = ("airflow", "jobs", "serving")
PARTS = {
    "jobs/ingest/test_ingest": "Data",
    "faults/jobs/test_data": "Data",
    "jobs/curate/test_bad_rows": "Data",
    "jobs/check/test_check": "Data",
    "jobs/finetune/test_refusals": "Data",
    "faults/jobs/test_training": "Training",
    "jobs/finetune/test_resume": "Training",
    "jobs/finetune/test_committing": "Training",
    "faults/jobs/test_memory": "Training",
    "faults/jobs/test_nodes": "Training",
    "faults/airflow/test_orchestration": "Orchestration",
    "faults/airflow/test_interrupted": "Orchestration",
    "faults/airflow/test_whole_airflow": "Orchestration",
    "faults/airflow/test_announcements": "Orchestration",
    "faults/airflow/test_hostile_values": "Orchestration",
    "include/gates/test_evaluation": "Evaluation and registry",
    "operators/gates/test_sensor": "Evaluation and registry",
    "jobs/evaluate/test_evaluate": "Evaluation and registry",
    "faults/jobs/test_registry": "Evaluation and registry",
    "jobs/candidate/test_candidate": "Evaluation and registry",
    "jobs/champion/test_champion": "Evaluation and registry",
    "include/artifacts/test_store": "Artifacts",
    "jobs/import_model/test_import_model": "Artifacts",
    "jobs/evaluate/test_hostile_models": "Artifacts",
    "jobs/merge/test_merge": "Artifacts",
    "jobs/common/engine_runtime/test_hardware": "Artifacts",
    "jobs/serving/triton/test_repository": "Artifacts",
    "faults/jobs/test_retention": "Retention",
    "faults/serving/test_release": "Release",
    "faults/serving/test_doors": "Release",
    "faults/serving/test_tiers": "Release",
    "faults/serving/test_controller_kills": "Release",
    "faults/airflow/test_rollout_kills": "Release",
    "faults/serving/test_soak": "Release",
    "faults/airflow/test_notifications": "Notifications",
}
"""Part of docs/faults.md by page: the path of a test file below tests/, without its suffix."""

_HEADER = "| given | when | then | the user reads | held |\n|---|---|---|---|---|\n"
_HELD = re.compile(r"([\d,]+) of ([\d,]+)")
_SCRATCH = re.compile(r"(/[\w.-]+)+/test_[\w-]*(?=/)")
"""The folder that a test was given: another one each time."""

_WIDEST = 240
"""Characters of a message that are shown."""


class Scenario(NamedTuple):
    part: str
    given: str
    when: str
    then: str


class CollectedTest(NamedTuple):
    """One collected test; `page` is a key of PARTS."""

    page: str
    name: str
    scenario: Scenario


@dataclass(frozen=True)
class Row:
    """One row of a table, as text without markup; `held` is `<passed> of <run>`."""

    given: str
    when: str
    then: str
    reads: str
    held: str


def collected_tests() -> list[CollectedTest]:
    """Collect the tests that are scenarios, each environment's by its own Python, in the order of the page.

    Raises:
        RuntimeError: a suite cannot be collected; the message ends with pytest's own.
    """
    with ThreadPoolExecutor() as pool:
        found = [test for tests in pool.map(_collected_in, ENVIRONMENTS) for test in tests]
    order = list(PARTS)
    return sorted(found, key=lambda test: order.index(test.page))


def environment_of(page: str) -> str:
    """Return the environment in which the tests of a page run."""
    rooms = page.removeprefix("faults/").split("/")
    if rooms[:2] == ["jobs", "serving"]:
        return "serving"
    return rooms[0] if rooms[0] in ENVIRONMENTS else "airflow"


def _collected_in(environment: str) -> list[CollectedTest]:
    files = [f"tests/{page}.py" for page in PARTS if environment_of(page) == environment]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenarios.json"
        command = [str(python_of(environment)), "-m", "pytest", "-m", "scenario", "--collect-only", *files]
        ended = subprocess.run([*command, f"--scenarios={file}"], cwd=PROJECT, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"the scenarios of {environment} cannot be collected:\n{ended.stdout[-2000:]}")
        entries = json.loads(file.read_text(encoding="utf-8"))
    return [
        CollectedTest(
            page := entry["page"], entry["test"], Scenario(PARTS[page], entry["given"], entry["when"], entry["then"])
        )
        for entry in entries
    ]


def published(tests: Iterable[CollectedTest], results: Path, before: str) -> str:
    """Return the tables of the page: a heading with the counts of what held, and a table, for each part.

    Args:
        tests: every test that is a scenario, in the page's order.
        results: the folder in which the suites keep what became of their tests.
        before: the page as it stands.
    """
    stands = {scenario[1:]: row for scenario, row in rows_of(before).items()}
    by_scenario: dict[Scenario, list[CollectedTest]] = defaultdict(list)
    for test in tests:
        by_scenario[test.scenario].append(test)
    by_part: dict[str, list[Row]] = defaultdict(list)
    for scenario, its_tests in by_scenario.items():
        row = _row(scenario, its_tests, results) or stands.get(scenario[1:])
        by_part[scenario.part].append(row or Row(*scenario[1:], "", NOT_RUN))
    return "\n".join(_table(part, rows) for part, rows in by_part.items())


def rows_of(page: str) -> dict[Scenario, Row]:
    """Read the rows of every table of the page back, by scenario."""
    rows, part = {}, ""
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith("## "):
            part = line.removeprefix("## ")
        elif line.startswith("| ") and f"{line}\n" not in _HEADER:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            row = Row(*(unescape(cell.strip().replace("\\|", "|")) for cell in cells))
            rows[Scenario(part, row.given, row.when, row.then)] = row
    return rows


def _row(scenario: Scenario, tests: list[CollectedTest], results: Path) -> Row | None:
    """Return the row of a scenario whose tests have run, or None."""
    kept = [result for test in tests if (result := _results(results / f"{test.page}.json").get(test.name))]
    run = [result for result in kept if result["outcome"] != "skipped"]
    if not run:
        return None
    reads = min((message for result in run for message in result["reads"]), key=len, default="")
    reads = _SCRATCH.sub("…", reads)
    reads = reads if len(reads) <= _WIDEST else f"{reads[: _WIDEST - 1]}…"
    held = sum(result["outcome"] == "passed" for result in run)
    return Row(*scenario[1:], reads, f"{held} of {len(run)}")


def _results(file: Path) -> dict[str, dict]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _table(part: str, rows: list[Row]) -> str:
    held, run = (sum(counts) for counts in zip(*map(_counts, rows), strict=True))
    lines = "\n".join(_line(row) for row in rows)
    return f"## {part}\n\n{len(rows)} scenarios, {held:,} of {run:,} tests held.\n\n{_HEADER}{lines}\n"


def _counts(row: Row) -> Iterator[int]:
    match = _HELD.fullmatch(row.held)
    yield from (int(number.replace(",", "")) for number in match.groups()) if match else (0, 0)


def _line(row: Row) -> str:
    cells = [escape(cell, quote=False).replace("|", "\\|") for cell in astuple(row)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    before = PAGE.read_text(encoding="utf-8")
    tests = collected_tests()
    tables = published(tests, home() / "faults", before)
    head, tail = before.partition(BEGIN)[0], before.partition(END)[2]
    after = f"{head}{BEGIN}\n{tables}{END}{tail}"
    PAGE.write_text(after, encoding="utf-8")
    for scenario in sorted(set(rows_of(before)) - set(rows_of(after))):
        print("no longer a scenario:", *scenario, sep="\n  ", file=sys.stderr)
    for row in rows_of(after).values():
        if row.held == NOT_RUN:
            print("not run yet:", row.given, row.when, row.then, sep="\n  ", file=sys.stderr)


if __name__ == "__main__":
    main()
