"""The list of faults for the README, from what the last `make test-faults` kept: `python -m tests.faults.published`."""

from __future__ import annotations

import json
from pathlib import Path

from include.laptop.home import PROJECT, home

BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
PAGES = {
    "jobs-test_data": "Data",
    "jobs-test_training": "Training",
    "jobs-test_memory": "Training",
    "airflow-test_orchestration": "Orchestration",
    "airflow-test_hostile_values": "Orchestration",
    "jobs-test_evaluation_and_registry": "Evaluation and registry",
    "jobs-test_artifacts": "Artifacts",
    "serving-test_release": "Release",
    "serving-test_controller_kills": "Release",
    "airflow-test_rollout_kills": "Release",
    "serving-test_soak": "Release",
}
_WIDEST = 240


def table(folder: Path) -> str:
    """Markdown: one row a scenario, in the order of the pages.

    Raises:
        SystemExit: a page is missing, or a scenario did not hold.
    """
    lines = ["| | given | when | then | the user reads | held |", "|---|---|---|---|---|---|"]
    part = None
    for page, title in PAGES.items():
        file = folder / f"{page}.json"
        if not file.is_file():
            raise SystemExit(f"{file} is missing: run `make test-faults` first")
        for row in json.loads(file.read_text())["scenarios"]:
            if row["held"] < row["tried"]:
                raise SystemExit(f"{page}: {row['when']}: held {row['held']} of {row['tried']}")
            reads = min(row["reads"], key=len, default="")
            shown = reads if len(reads) <= _WIDEST else reads[: _WIDEST - 1] + "…"
            cells = [title if title != part else "", row["given"], row["when"], row["then"], shown]
            count = f"{row['held']} of {row['tried']}" if row["tried"] else "not run"
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, count]) + " |")
            part = title
    return "\n".join(lines)


def main() -> None:
    readme = PROJECT / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    readme.write_text(f"{head}{BEGIN}\n{table(home() / 'faults')}\n{END}{tail}")


if __name__ == "__main__":
    main()
