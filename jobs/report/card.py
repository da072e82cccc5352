"""The record as a model card for Hugging Face's hub: YAML in front, Markdown behind."""

from __future__ import annotations

import re
from typing import Any

import yaml

from jobs.report.page import environment
from jobs.report.record import Record, Score

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def render_card(record: Record) -> str | None:
    """Return the card; None where there is no tuned model to speak of."""
    if record.training is None:
        return None
    scores = {score.model: score for score in record.evaluation.scores} if record.evaluation else {}
    jinja = environment()
    jinja.filters["plain"] = plain
    return jinja.get_template("model_card.md.jinja").render(
        record=record,
        front=yaml.safe_dump(_front(record, scores.get("tuned")), allow_unicode=True, sort_keys=False),
        tuned=scores.get("tuned"),
        weak=[label for label in record.evaluation.labels if label.exact_match.get("tuned", 1.0) < 0.9]
        if record.evaluation
        else [],
    )


def plain(text: Any) -> str:
    """Return one line of Markdown that says just this text, whatever is in it."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _front(record: Record, tuned: Score | None) -> dict[str, Any]:
    assert record.training is not None
    front: dict[str, Any] = {
        "base_model": record.base_model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["anemone", record.training.method, f"recipe:{record.recipe}"],
    }
    data = next((made for made in record.chain if made.role == "data"), None)
    curated = next((made for made in record.chain if made.role == "curated"), None)
    if data is not None:
        front["datasets"] = [data.name]
    if tuned is not None and curated is not None:
        metrics = [("exact_match", "exact match", tuned.exact_match), ("rouge", "ROUGE-L", tuned.rouge_l)]
        metrics.append(("loss", "loss in nats an answer token", tuned.heldout_loss))
        front["model-index"] = [
            {
                "name": _name(record),
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "held-out rows", "type": curated.name, "revision": curated.digest},
                        "metrics": [
                            {"type": kind, "name": name, "value": round(value, 6)}
                            for kind, name, value in metrics
                            if value is not None
                        ],
                    }
                ],
            }
        ]
    return front


def _name(record: Record) -> str:
    return f"{record.model or 'model'}{f'-v{record.version}' if record.version else ''}"
