"""The list of faults in the README, from what the last `make test-faults` kept: `python -m tests.faults.published`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from include.home import PROJECT, home

BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
PAGES = {
    "jobs-test_data": "Data",
    "jobs-test_training": "Training",
    "jobs-test_memory": "Training",
    "jobs-test_nodes": "Training",
    "airflow-test_orchestration": "Orchestration",
    "airflow-test_whole_airflow": "Orchestration",
    "airflow-test_hostile_values": "Orchestration",
    "jobs-test_evaluation_and_registry": "Evaluation and registry",
    "jobs-test_artifacts": "Artifacts",
    "jobs-test_retention": "Retention",
    "serving-test_release": "Release",
    "serving-test_doors": "Release",
    "serving-test_tiers": "Release",
    "serving-test_controller_kills": "Release",
    "airflow-test_rollout_kills": "Release",
    "serving-test_soak": "Release",
    "airflow-test_notifications": "Notifications",
}
_SCRATCH = re.compile(r"(/[\w.-]+)+/test_[\w-]*(?=/)")
"""The folder that a test was given: another one each time."""

_WIDEST = 240
"""Characters of a sentence that are shown."""


def published(folder: Path) -> str:
    """HTML that Markdown takes: a summary line and a table for each part, with the counts of what held."""
    blocks, missing = [], []
    for part, pages in groupby(PAGES, PAGES.__getitem__):
        files = {page: folder / f"{page}.json" for page in pages}
        missing += [f"`{page.replace('-', '/')}`" for page, file in files.items() if not file.is_file()]
        rows = [row for file in files.values() if file.is_file() for row in _rows(json.loads(file.read_text()))]
        if rows:
            blocks.append(_block(part, rows))
    if missing:
        blocks.append(f"\nNot run since the last change: {', '.join(missing)}.")
    return "\n".join(blocks)


def _block(part: str, rows: list[dict[str, Any]]) -> str:
    held, run = (sum(row[key] for row in rows) for key in ("held", "run"))
    table = "\n".join(_line(row) for row in rows)
    return (
        f"<details><summary><b>{part}</b>: {len(rows)} scenarios, {held:,} of {run:,} tests held</summary>\n\n"
        f"| given | when | then | the user reads | held |\n|---|---|---|---|---|\n{table}\n\n</details>"
    )


def _rows(results: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tests of one scenario are one row."""
    by_scenario: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results.values():
        by_scenario.setdefault(tuple(result[key] for key in ("given", "when", "then")), []).append(result)
    for scenario, tests in by_scenario.items():
        yield {
            "scenario": scenario,
            "reads": min((sentence for test in tests for sentence in test["reads"]), key=len, default=""),
            "held": sum(test["outcome"] == "passed" for test in tests),
            "run": sum(test["outcome"] != "skipped" for test in tests),
        }


def _line(row: dict[str, Any]) -> str:
    reads = _SCRATCH.sub("…", row["reads"])
    reads = reads if len(reads) <= _WIDEST else f"{reads[: _WIDEST - 1]}…"
    count = f"{row['held']} of {row['run']}" if row["run"] else "by option"
    cells = [escape(cell, quote=False).replace("|", "\\|") for cell in (*row["scenario"], reads, count)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    readme = PROJECT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    block = published(home() / "faults")
    readme.write_text(f"{head}{BEGIN}\n{block}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
