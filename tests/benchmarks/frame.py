"""What all benchmarks have in common: a row of the table, and a way to be run alone or by `bench.py`.

A benchmark is a script with a function that returns rows:

    if __name__ == "__main__":
        frame.main(__doc__, measure)

Run by hand it prints its rows; `make bench` runs all of them, each in its own environment, and makes one table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Nothing that is measured reaches for a hub or reports home."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what is measured, and against what.
        unit: of `ours` and `theirs`, which are medians over the repeats; `theirs` is None where nothing is compared.
        ratio: how many times better ours is; without `theirs` the figure that the aim is about.
        spread: lowest and highest ratio of the repeats.
        aim: what the ratio should be, as (comparison, number), such as (">=", 25); None: only recorded.
        conditions: sizes, repeats, versions, and what else one has to know to measure the same.
    """

    what: str
    unit: str
    ours: float
    theirs: float | None
    ratio: float
    spread: tuple[float, float]
    aim: tuple[str, float] | None = None
    conditions: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the aim; None where there is none."""
        if self.aim is None:
            return None
        comparison, number = self.aim
        return self.ratio >= number if comparison == ">=" else self.ratio <= number

    def document(self) -> dict[str, Any]:
        """As it is kept in JSON."""
        return {**asdict(self), "met": self.met}


def against(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    unit: str,
    more_is_better: bool = False,
    aim: float | None = None,
    conditions: str = "",
    **more: Any,
) -> Row:
    """A row of turns in which both sides were measured: ratio and spread are of the turns' own ratios."""
    ratios = [a / b if more_is_better else b / a for a, b in zip(ours, theirs, strict=True)]
    return Row(
        what,
        unit,
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        None if aim is None else (">=", aim),
        conditions,
        more,
    )


def figure(
    what: str,
    values: Sequence[float],
    *,
    unit: str,
    aim: tuple[str, float] | None = None,
    conditions: str = "",
    **more: Any,
) -> Row:
    """A row of a figure that stands for itself."""
    middle = statistics.median(values)
    return Row(what, unit, middle, None, middle, (min(values), max(values)), aim, conditions, more)


@dataclass(frozen=True)
class Cost:
    """What a process and those below it took; `rss` is the largest peak of any one of them, in bytes."""

    wall: float
    cpu: float
    rss: int
    output: str


def spend(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end. Raises RuntimeError with the end of its output where it fails."""
    # `wait4` counts a process and the children that it waited for, and no other's.
    began = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=PROJECT,
        env={**os.environ, **OFFLINE, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output[-4000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, output)


def cpu_seconds() -> float:
    """User and system time of this process and the children that it waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def scratch() -> Path:
    """Where benchmarks put what is too large for memory; below `ANEMONE_HOME`, on the store's disk."""
    from include.home import home

    folder = home() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def versions(*packages: str) -> str:
    """Name and version of installed packages, for the conditions."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows (as `Row.document` gives them) as a Markdown table."""
    lines = ["| what | ours | theirs | ratio (range) | aim | met | conditions |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["spread"]
        unit = row["unit"]
        theirs = "–" if row["theirs"] is None else f"{number(row['theirs'])} {unit}"
        ratio = f"{number(row['ratio'])} ({number(low)}–{number(high)})" if low != high else number(row["ratio"])
        aim = "–" if row["aim"] is None else f"{'≥' if row['aim'][0] == '>=' else '≤'} {number(row['aim'][1])}"
        met = {None: "–", True: "yes", False: "**no**"}[row["met"]]
        lines.append(
            f"| {row['what']} | {number(row['ours'])} {unit}".rstrip() + f" | {theirs} | {ratio} | {aim} | {met} "
            f"| {row['conditions']} |"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(description: str | None, measure: Callable[[bool], list[Row]]) -> None:
    """Measure, print the rows, and leave them as JSON where `bench.py` asks for it.

    Args:
        measure: given whether small sizes will do, which only show that everything runs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = [row.document() for row in measure(given.small)]
    if given.out:
        given.out.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        print(table(rows))
