"""What came out of runs, as a table for the end: verdict, reason, figures, where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from include.artifacts.store import FILES, Store
from include.errors import AnemoneError
from include.laptop.home import home, python_of
from include.laptop.rest import Airflow
from include.laptop.watch import DAG, Run

_GATES = ("data_quality_gate", "evaluation_gate")
_FIGURES = (
    "tuned_exact_match",
    "gain",
    "tuned_heldout_loss",
    "base_zero_shot_exact_match",
    "base_few_shot_exact_match",
    "champion_difference",
)
"""Of the evaluation gate's numbers, those worth a place in the table."""


def print_report(console: Console, airflow: Airflow, runs: Sequence[Run]) -> None:
    """One block a run: what was decided, by whom, why, with which figures, and where to read more."""
    for run in runs:
        table = Table(title=run.title, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in _facts(airflow, run).items():
            table.add_row(key, value)
        console.print(table)
        console.print()
    table = Table(title="Where to look", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Airflow", f"{airflow.url} (`make up` prints the login)")
    table.add_row("MLflow", f"{python_of('jobs')} -m mlflow ui --backend-store-uri sqlite:///{home() / 'mlflow.db'}")
    table.add_row("artifacts", str(home() / "store"))
    console.print(table)


def _facts(airflow: Airflow, run: Run) -> Mapping[str, str]:
    stopped = run.stopped_by
    facts = {"verdict": _verdict(run)}
    if stopped:
        facts["reason"] = stopped.error or "the task said nothing: read its log"
    figures = {key: text for task in _GATES if (stage := run.stage(task)) for key, text in stage.figures.items()}
    shown = [f"{key} {_short(figures[key])}" for key in _FIGURES if key in figures]
    if shown:
        facts["figures"] = " · ".join(shown)
    reused = [stage.task for stage in run.stages if stage.reused]
    facts["time"] = f"{run.seconds:.0f} s" + (f", reused: {', '.join(reused)}" if reused else "")
    facts["run"] = airflow.run_url(DAG, run.run_id or "")
    if docs := _data_docs(airflow, run):
        facts["data docs"] = docs
    return facts


def _verdict(run: Run) -> str:
    if run.state == "success":
        return "[green]passed every gate; registered as a candidate[/]"
    stopped = run.stopped_by
    return f"[red]stopped by {stopped.task}[/]" if stopped else f"[red]{run.state}[/]"


def _data_docs(airflow: Airflow, run: Run) -> str | None:
    """Path of the check's report, where the check got that far."""
    uri = airflow.xcom(DAG, run.run_id or "", "check")
    if not isinstance(uri, str):
        return None
    try:
        store, name = Store.of(uri)
        manifest = store.manifest(name)
    except AnemoneError:
        return None
    pages = (
        sorted((file.path for file in manifest.files if file.path.endswith("index.html")), key=len) if manifest else []
    )
    if not pages:
        return None
    folder = Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / FILES
    return str(folder / pages[0])


def _short(text: str) -> str:
    return f"{float(text):.3f}"
