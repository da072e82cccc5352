"""Runs in the terminal: a live table for a person, plain lines for a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from include.laptop.watch import Run, Stage

_MARKS = {
    "success": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "upstream_failed": ("–", "dim"),
    "skipped": ("–", "dim"),
    "running": ("▶", "yellow"),
    "deferred": ("▶", "yellow"),
    "up_for_retry": ("⟳", "yellow"),
}
_GOING_ON = ("running", "deferred", "up_for_retry")
_REUSED = ("↺", "cyan")
_QUIET_SECONDS = 15.0
"""Between two progress lines of one stage where lines scroll by."""


def terminal() -> Console:
    """Return a console on standard output: as wide as the window, or wide enough for a path where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


class Screen:
    """Shows runs while they are in progress: `with Screen(console, runs) as screen: … screen.show()`."""

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self._console = console
        self._runs = runs
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._printed: dict[tuple[str, str], tuple[str | None, float]] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Draw the runs as they are now."""
        if self._live:
            self._live.update(_table(self._runs), refresh=True)
            return
        for run in self._runs:
            self._print_change(run, "", run.state, "" if run.state != "waiting" else "for Airflow to begin it")
            for stage in run.stages:
                if stage.state not in (None, "scheduled", "queued", "upstream_failed", "none"):
                    self._print_change(run, stage.task, stage.state, _summary(stage))

    def _print_change(self, run: Run, task: str, state: str | None, summary: str) -> None:
        """Print a line where the state is new, or the stage still runs and was quiet for a while."""
        now = time.monotonic()
        known, since = self._printed.get((run.title, task), (None, 0.0))
        if state == known and not (task and state in _GOING_ON and summary and now - since >= _QUIET_SECONDS):
            return
        self._printed[run.title, task] = (state, now)
        words = [run.title, task, "reused" if "reused" in summary else state or "", summary.replace("reused", "")]
        self._console.print(Text("  ".join(word.strip() for word in words if word.strip())), soft_wrap=True)


def _table(runs: Sequence[Run]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("act", "stages", "now", "progress", "figures", "time"):
        table.add_column(heading, header_style="dim", no_wrap=heading != "figures")
    for run in runs:
        marks = Text(" ").join(Text(*_mark(stage)) for stage in run.stages)
        current = [stage for stage in run.stages if stage.state in _GOING_ON]
        stopped = run.stopped_by
        if run.state == "waiting":
            now, progress, figures = "announced", None, ""
        elif run.ended:
            now = f"stopped by {stopped.task}" if stopped else _achieved(run)
            progress, figures = None, ""
        else:
            leading = max(current, key=lambda stage: (stage.progress is not None, stage.seconds), default=None)
            now = ", ".join(stage.task for stage in current) or "…"
            progress = leading.progress if leading else None
            figures = _summary(leading) if leading else ""
        bar = ProgressBar(total=1, completed=progress, width=16) if progress is not None else ""
        table.add_row(run.title, marks, now, bar, figures, f"{run.seconds:.0f} s")
    return table


def _achieved(run: Run) -> str:
    if run.rollout is not None:
        return "live"
    return "registered" if run.stage("register") is not None else "done"


def _mark(stage: Stage) -> tuple[str, str]:
    if stage.reused and stage.state == "success":
        return _REUSED
    return _MARKS.get(stage.state or "", ("·", "dim"))


def _summary(stage: Stage) -> str:
    """Return a stage in one line: how long, how far, its newest numbers; of a failure the reason."""
    if stage.state == "failed" and stage.error:
        return stage.error
    if stage.reused:
        return "reused"
    parts = [f"{stage.seconds:.0f} s"]
    if stage.state == "running" and stage.progress is not None:
        parts.append(f"{stage.progress:.0%}")
    parts += [f"{key}={text}" for key, text in list(stage.latest.items())[:4]]
    return "  ".join(parts)
