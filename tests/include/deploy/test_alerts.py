"""The alerts for a cluster's Prometheus, tried by its own tool on series as the services give them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.home import PROJECT

MONITORING = PROJECT / "include" / "deploy" / "kubernetes" / "monitoring"
UP = {f'up{{job="{job}", namespace="anemone"}}': "1x30" for job in ("router", "router-canary", "canary-controller")}
COUNTS = {
    'anemone_router_requests_total{target="kubectl", arm="champion", release="a", status="200"}': "0+80x30",
    'anemone_router_requests_total{target="kubectl", arm="canary", release="b", status="503"}': "0+20x30",
    'anemone_router_failed_total{target="kubectl", arm="champion", release="a"}': "0x30",
    'anemone_router_failed_total{target="kubectl", arm="canary", release="b"}': "0+20x30",
    'anemone_router_rescued_total{target="kubectl", arm="champion", release="a"}': "0x30",
    'anemone_router_rescued_total{target="kubectl", arm="canary", release="b"}': "0+20x30",
}
GONE = "1x9 _x20"


def firing(folder: Path, series: dict[str, str]) -> set[str]:
    """Names of the alerts that fire after 25 minutes."""
    (rules,) = yaml.safe_load_all((MONITORING / "rules.yaml").read_text())
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    names = sorted({rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]})
    cases = [{"eval_time": "25m", "alertname": name, "exp_alerts": []} for name in names]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test: dict[str, Any] = {"interval": "1m", "input_series": inputs, "alert_rule_test": cases}
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(folder / "test.yaml")], capture_output=True, text=True)
    told = done.stdout + done.stderr
    fired = {name for name in names if f"alertname: {name}, time" in told}
    assert done.returncode == bool(fired), told
    return fired


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    ("series", "alerts"),
    [
        ({}, set()),
        ({'up{job="router", namespace="anemone"}': GONE}, {"RouterIsAway"}),
        ({'up{job="canary-controller", namespace="anemone"}': GONE}, {"ControllerIsAway"}),
        ({'up{job="router-canary", namespace="anemone"}': GONE}, {"CanaryRouterIsAway"}),
        ({'up{job="router-canary", namespace="anemone"}': "_x30"}, set()),
        (
            {'anemone_router_rescued_total{target="kubectl", arm="canary", release="b"}': "0+5x30"},
            {"ClientsSeeErrors"},
        ),
    ],
)
def test_an_alert_fires_for_what_it_is_for_and_for_nothing_else(
    tmp_path: Path, series: dict[str, str], alerts: set[str]
) -> None:
    # That the canary fails is an alert of its own all the time.
    assert firing(tmp_path, {**UP, **COUNTS, **series}) == {*alerts, "CanaryFails"}


def test_each_job_of_an_alert_is_a_service_that_is_scraped() -> None:
    selectors = [
        document["spec"]["selector"]
        for document in yaml.safe_load_all((MONITORING / "monitors.yaml").read_text())
        if document["kind"] == "ServiceMonitor"
    ]
    scraped = {selector.get("matchLabels", {}).get("app.kubernetes.io/name") for selector in selectors}
    for selector in selectors:
        for expression in selector.get("matchExpressions", ()):
            scraped |= set(expression["values"])
    assert {"router", "router-canary", "canary-controller"} <= scraped
