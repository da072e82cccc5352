"""The results of runs, as a table for the end: verdict, reason, figures, where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from include.artifacts.store import FILES, Store
from include.errors import AnemoneError
from include.home import home
from include.laptop.home import python_of
from include.laptop.rest import Airflow
from include.laptop.serving import router_url
from include.laptop.watch import Run

_FIGURES = (
    "tuned_exact_match",
    "gain",
    "tuned_heldout_loss",
    "base_zero_shot_exact_match",
    "base_few_shot_exact_match",
    "champion_difference",
)
"""Of the evaluation's numbers, those worth a place in the table; of a run that is not evaluated all are shown."""

_ROLLOUT_FIGURES = (
    "canary_requests",
    "champion_requests",
    "canary_failed",
    "champion_failed",
    "canary_slow",
    "champion_slow",
    "canary_bad",
    "champion_bad",
    "errors_log10_e",
    "latency_log10_e",
    "quality_log10_e",
    "failed_bound",
    "bad_bound",
    "golden_same",
    "seconds",
)
"""Of a rollout's evidence."""


def print_report(
    console: Console, airflow: Airflow, runs: Sequence[Run], traffic: Mapping[str, Mapping[str, int]] | None = None
) -> None:
    """Print one block a run: what was decided, by whom, why, with which figures, and where to read more.

    Args:
        traffic: by a run's title, what the traffic generator counted meanwhile.
    """
    for run in runs:
        table = Table(title=run.title, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        facts = _facts(airflow, run)
        if counts := (traffic or {}).get(run.title):
            facts["traffic"] = " · ".join(f"{key} {count:,}" for key, count in counts.items())
        for key, value in facts.items():
            table.add_row(key, value)
        console.print(table)
        console.print()
    table = Table(title="Where to look", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Airflow", f"{airflow.url} (`make up` prints the login)")
    table.add_row("serving", f"{router_url()} (`make ask PROMPT=…`, or any OpenAI client)")
    table.add_row("MLflow", f"{python_of('jobs')} -m mlflow ui --backend-store-uri sqlite:///{home() / 'mlflow.db'}")
    table.add_row("artifacts", str(home() / "store"))
    console.print(table)


def _facts(airflow: Airflow, run: Run) -> dict[str, str]:
    stopped = run.stopped_by
    facts = {"verdict": _verdict(airflow, run)}
    if stopped:
        facts["reason"] = stopped.error or "the task left no message: read its log"
    if shown := _figures(run):
        facts["figures"] = " · ".join(shown)
    reused = [stage.task for stage in run.stages if stage.reused]
    facts["time"] = f"{run.seconds:.0f} s" + (f", reused: {', '.join(reused)}" if reused else "")
    if run.run_id is not None:
        facts["run"] = airflow.run_url(run.dag, run.run_id)
        facts |= _pages(airflow, run, run.run_id)
    return facts


def _figures(run: Run) -> list[str]:
    if run.rollout is not None:
        figures = run.rollout.figures
        return [f"{key} {figures[key]}" for key in _ROLLOUT_FIGURES if key in figures]
    found = {key: text for gate in run.gates for key, text in gate.figures.items()}
    chosen = _FIGURES if run.stage("evaluate") is not None else tuple(found)
    return [f"{key} {_short(found[key])}" for key in chosen if key in found]


def _verdict(airflow: Airflow, run: Run) -> str:
    if run.state == "success" and run.rollout is not None:
        live = airflow.xcom(run.dag, run.run_id or "", run.rollout.task)
        return f"[green]live: version {live['version']}, as {live['release']}[/]"
    if run.state == "success":
        registered = "; registered as a candidate" if run.stage("register") is not None else ""
        return f"[green]passed every gate{registered}[/]" if run.gates else "[green]succeeded[/]"
    stopped = run.stopped_by
    return f"[red]stopped by {stopped.task}[/]" if stopped else f"[red]{run.state}[/]"


def _pages(airflow: Airflow, run: Run, run_id: str) -> dict[str, str]:
    """Return what a person can read on: the run's own page, the check's report, the rollout's evidence."""
    pages = {}
    for name, task, file in (("report", "report", "report.html"), ("data docs", "check", "index.html")):
        if run.stage(task) is not None:
            pages[name] = _page(airflow.xcom(run.dag, run_id, task), file)
    if run.rollout is not None:
        pages["evidence"] = _page(airflow.xcom(run.dag, run_id, run.rollout.task, key="evidence"), "report.md")
    return {name: page for name, page in pages.items() if page}


def _page(uri: object, name: str) -> str | None:
    """Return the path of the topmost file called `name` in an artifact; None where there is none."""
    if not isinstance(uri, str):
        return None
    try:
        store, artifact = Store.of(uri)
        manifest = store.manifest(artifact)
    except AnemoneError:
        return None
    paths = [file.path for file in manifest.files if Path(file.path).name == name] if manifest else []
    if manifest is None or not paths:
        return None
    return str(
        Path(store.root.removeprefix("file://"))
        / artifact
        / "attempts"
        / manifest.attempt
        / FILES
        / min(paths, key=len)
    )


def _short(text: str) -> str:
    value = float(text)
    return f"{value:,.0f}" if value > 1 and value.is_integer() else f"{value:.3f}"
