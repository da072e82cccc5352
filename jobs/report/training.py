"""The loss curve and the settings of the training."""

from __future__ import annotations

from typing import Any

from jobs.report.artifacts import Artifacts
from jobs.report.record import Training

_SETTINGS = (
    "steps",
    "global_batch_size",
    "learning_rate",
    "min_learning_rate",
    "warmup_steps",
    "max_tokens",
    "dtype",
    "strategy",
    "processes",
    "seed",
)
_MOST_POINTS = 600
"""Of a curve on a page: a screen has no more columns."""


def describe_training(artifacts: Artifacts) -> Training | None:
    """Return the curve; None where nothing was trained."""
    loss, validation = (artifacts.lines("tuned", name) for name in ("loss.jsonl", "validation.jsonl"))
    manifest = artifacts.manifest("tuned")
    if loss is None or validation is None or manifest is None:
        return None
    config = manifest.config
    settings = {name: _text(config[name]) for name in _SETTINGS if name in config}
    if config.get("lora"):
        settings |= {f"lora {name}": _text(value) for name, value in config["lora"].items()}
    best = min(validation, key=lambda point: point["loss"], default=None)
    return Training(
        method=str(config.get("method", "unknown")),
        loss=_points(loss),
        validation=_points(validation),
        best=(best["step"], best["loss"]) if best else None,
        settings=settings,
    )


def _points(curve: list[dict[str, Any]]) -> tuple[tuple[int, float], ...]:
    every = -(-len(curve) // _MOST_POINTS) or 1
    kept = curve[::every] + (curve[-1:] if (len(curve) - 1) % every else [])
    return tuple((point["step"], point["loss"]) for point in kept)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
