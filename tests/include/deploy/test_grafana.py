"""The dashboard asks for metrics that are there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from include.home import PROJECT
from jobs.common.metrics import GAUGES

DASHBOARD = PROJECT / "include" / "deploy" / "grafana" / "anemone.json"
_FOREIGN = ("nv_inference_", "DCGM_FI_DEV_")
"""Triton's own (user guide, Metrics) and those of NVIDIA's DCGM exporter."""

RULES = PROJECT / "include" / "deploy" / "kubernetes" / "monitoring" / "rules.yaml"


def expressions(document: Any) -> list[str]:
    if isinstance(document, list):
        return [found for item in document for found in expressions(item)]
    if isinstance(document, dict):
        own = [document["expr"]] if isinstance(document.get("expr"), str) else []
        return own + [found for item in document.values() for found in expressions(item)]
    return []


def metrics_of(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\b(?:by|on)\s*\([^)]*\)|\[[^]]*\]", "", expression)
    return set(re.findall(r"\b(?:anemone|training|validation|throughput|gpu|job|nv|DCGM)_\w+\b", bare))


def known() -> set[str]:
    source = (PROJECT / "jobs" / "serving" / "router" / "metrics.py").read_text()
    router = set(re.findall(r'"(anemone_router_\w+)"', source))
    counters = {f"anemone_router_{name}" for name in re.findall(r'^    "(\w+)": \("', source, re.MULTILINE)}
    suffixes = ("", "_total", "_bucket", "_sum", "_count")
    return GAUGES.keys() | {name + suffix for name in router | counters for suffix in suffixes}


@pytest.mark.parametrize("place", ["dashboard", "rules"])
def test_every_metric_that_is_asked_for_exists(place: str) -> None:
    document = json.loads(DASHBOARD.read_text()) if place == "dashboard" else yaml.safe_load(RULES.read_text())
    asked = {metric for expression in expressions(document) for metric in metrics_of(expression)}
    assert len(asked) > 4
    assert {metric for metric in asked if not metric.startswith(_FOREIGN)} <= known()


def test_the_dashboard_shows_the_five_figures_of_a_training() -> None:
    asked = {metric for found in expressions(json.loads(DASHBOARD.read_text())) for metric in metrics_of(found)}
    figures = {"training_loss", "validation_loss", "gpu_utilization", "gpu_memory_used", "throughput_tokens_per_sec"}
    assert figures <= asked


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
