"""The record as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.report.canary import BOUNDS
from jobs.report.charts import Bound, Chart, Series, interval
from jobs.report.provenance import totals
from jobs.report.record import Canary, Record, Training

_FOLDER = Path(__file__).parent / "templates"

_SMALLEST_SHARE = 0.05
"""The least upper end of an axis of shares, so that a share near 0 is not drawn as a large one."""

_WHOLE_CHAIN = {"registered", "candidate"}
"""The page of a run that makes one of these has all sections, from the data to the traffic."""

_SECTIONS: dict[str, set[str]] = {
    "data": {"curated"},
    "gates": set(),
    "training": {"tuned"},
    "evaluation": {"evaluation"},
    "answers": {"evaluation"},
    "parity": {"merged", "engine"},
    "engine": {"engine"},
    "canary": {"rollout"},
    "lineage": set(),
    "cost": set(),
    "versions": set(),
}
"""Section of the page → the artifacts that it shows; a section without any is on every page."""

MODELS = {
    "base_zero_shot": "base, zero-shot",
    "base_few_shot": "base, few-shot",
    "tuned": "tuned",
    "champion": "champion",
}
"""What the models of an evaluation are called on a page."""


def environment(**options: Any) -> Environment:
    """Return Jinja over this job's templates, with its filters."""
    jinja = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    jinja.filters |= {
        "words": lambda name: str(name).replace("_", " "),
        "model": lambda name: MODELS.get(name, name),
        "moment": moment,
        "seconds": seconds,
        "bytes": size,
        "dollars": dollars,
        "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=1),
    }
    jinja.globals |= {"interval": interval}
    return jinja


def render_page(record: Record) -> str:
    """Return the page; every text in it is escaped, since answers and rows can hold anything."""
    template = environment(autoescape=True).get_template("report.html.jinja")
    return template.render(
        record=record,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        loss_chart=_loss(record.training) if record.training else None,
        canary_charts=_rollout(record.canary) if record.canary and record.canary.runs else [],
        sections=_sections(record.roles),
        # A candidate's page says what is still to come, a release's what it was made from.
        candidate="registered" in record.roles,
        own=totals(record.chain),
        priced=any(made.cost is not None for made in record.chain),
        longest=max((made.wall_seconds for made in record.chain), default=0.0) or 1.0,
    )


def _sections(roles: tuple[str, ...]) -> list[str]:
    """Return the sections of the page: all of a candidate's and of a release's, and of others what they make."""
    whole = not roles or not _WHOLE_CHAIN.isdisjoint(roles)
    return [name for name, needed in _SECTIONS.items() if whole or not needed or not needed.isdisjoint(roles)]


def moment(time: datetime) -> str:
    """Return a point in time for a person: to the second, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def seconds(value: float) -> str:
    """Return a duration in the unit that a person would choose."""
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def dollars(value: float) -> str:
    """Return an amount of US dollars, to the cent, or to two digits where it is less than a cent."""
    return f"${value:,.2f}" if value >= 0.01 or not value else f"${value:.2g}"


def size(value: float) -> str:
    """Return bytes in MiB, from 10 GiB on in GiB."""
    return f"{value / 2**20:,.1f} MiB" if value < 10 * 2**30 else f"{value / 2**30:,.1f} GiB"


def _loss(training: Training) -> Markup:
    return Chart(
        title="loss, mean nats an answer token (logarithmic)",
        x_label="optimizer step",
        series=(Series("training", training.loss), Series("validation", training.validation, dots=True)),
        logarithmic=True,
        height=260,
    ).draw()


def _rollout(canary: Canary) -> list[Markup]:
    runs = canary.runs
    # The weight of an analysis run was in force since the run before.
    times = [0.0, *(run.seconds for run in runs)]
    weights = [*(run.weight for run in runs), 1.0 if canary.outcome == "promoted" else 0.0]
    charts = [
        _chart(
            "the canary's share of the traffic",
            [Series("canary", list(zip(times, weights, strict=True)), steps=True)],
            percent,
        )
    ]
    for part, among, title in (
        ("failed", "finished", "requests that failed, so far"),
        ("slow", "finished", "answers slower than the champion's quantile, so far"),
        ("bad", "sampled", "answers read that were bad, so far"),
    ):
        arms = [
            Series(
                label,
                [
                    (run.seconds, getattr(run, part)[arm] / getattr(run, among)[arm])
                    for run in runs
                    if getattr(run, among)[arm]
                ],
            )
            for arm, label in enumerate(("canary", "champion"))
        ]
        charts.append(_chart(title, arms, percent))
    evidence = [Series(name, [(run.seconds, run.log10_e[name]) for run in runs]) for name in runs[-1].log10_e]
    charts.append(
        _chart(
            "evidence that the canary is worse, log10 E",
            evidence,
            "{:g}".format,
            (Bound("rolls back", canary.e_limit),),
        )
    )
    bounds = [Series(name.removesuffix("_bound"), [(run.seconds, run.bounds[name]) for run in runs]) for name in BOUNDS]
    charts.append(
        _chart(
            "upper bounds of the canary's own shares: failed, bad",
            bounds,
            percent,
            (Bound("promotes", canary.rate_limit),),
        )
    )
    return charts


def _chart(title: str, series: list[Series], show: Callable[[float], str], bounds: tuple[Bound, ...] = ()) -> Markup:
    return Chart(
        title=title,
        x_label="seconds since the first step",
        series=series,
        bounds=bounds,
        show=show,
        least=(0.0, _SMALLEST_SHARE) if show is percent else (0.0,),
        wide=436,
        start=0.0,
        label_space=92,
        height=180,
    ).draw()


def percent(value: float) -> str:
    """Return a share of 0…1 for an axis."""
    return f"{100 * value:.3g}%"
