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
"""Upper end of an axis of shares at the least: 0 of 5 requests is no drama."""

MODELS = {
    "base_zero_shot": "base, zero-shot",
    "base_few_shot": "base, few-shot",
    "tuned": "tuned",
    "champion": "champion",
}
"""What the models of an evaluation are called on a page."""


def environment(**options: Any) -> Environment:
    """Jinja over this job's templates, with its filters."""
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
    """The page; every text in it is escaped, for answers and rows are anybody's."""
    template = environment(autoescape=True).get_template("report.html.jinja")
    return template.render(
        record=record,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        loss_chart=_loss(record.training) if record.training else None,
        canary_charts=_rollout(record.canary) if record.canary and record.canary.looks else [],
        own=totals(record.chain),
        priced=any(made.cost is not None for made in record.chain),
        longest=max((made.wall_seconds for made in record.chain), default=0.0) or 1.0,
    )


def moment(time: datetime) -> str:
    """A point in time for a person: to the second, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def seconds(value: float) -> str:
    """A duration in the unit that a person would choose."""
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def dollars(value: float) -> str:
    """An amount of US dollars, to the cent where that says anything."""
    return f"${value:,.2f}" if value >= 0.01 or not value else f"${value:.2g}"


def size(value: float) -> str:
    """Bytes in MiB, from 10 GiB on in GiB."""
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
    looks = canary.looks
    # What a look saw was in force since the one before.
    times = [0.0, *(look.seconds for look in looks)]
    weights = [*(look.weight for look in looks), 1.0 if canary.outcome == "promoted" else 0.0]
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
                    (look.seconds, getattr(look, part)[arm] / getattr(look, among)[arm])
                    for look in looks
                    if getattr(look, among)[arm]
                ],
            )
            for arm, label in enumerate(("canary", "champion"))
        ]
        charts.append(_chart(title, arms, percent))
    evidence = [Series(name, [(look.seconds, look.log10_e[name]) for look in looks]) for name in looks[-1].log10_e]
    charts.append(
        _chart(
            "evidence that the canary is worse, log10 E",
            evidence,
            "{:g}".format,
            (Bound("rolls back", canary.e_limit),),
        )
    )
    bounds = [
        Series(name.removesuffix("_bound"), [(look.seconds, look.bounds[name]) for look in looks]) for name in BOUNDS
    ]
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
    """A share of 0…1 for an axis."""
    return f"{100 * value:.3g}%"
