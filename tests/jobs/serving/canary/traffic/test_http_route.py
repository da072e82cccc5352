"""Two weights of an HTTPRoute are changed, and nothing else, whoever else changes it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import ConfigurationError
from jobs.serving.canary.traffic.http_route import HTTPRoute, KubernetesConfig
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from tests.jobs.serving.canary.traffic.kubernetes_api import ROUTE, KubernetesApi


def drive(api: KubernetesApi, folder: Path, work: Callable[[HTTPRoute], Any], rule: str = "models") -> Any:
    (folder / "token").write_text("planted-token\n")

    async def run() -> Any:
        async with api.served() as url:
            given = KubernetesConfig(url, folder / "token", None, "anemone")
            async with HTTPRoute(given, "anemone/models", rule, "router", "router-canary") as route:
                return await work(route)

    return asyncio.run(run())


def test_two_numbers_are_changed_and_nothing_else(tmp_path: Path) -> None:
    api = KubernetesApi()

    async def work(route: HTTPRoute) -> float:
        await route.set(0.05)
        await route.set(0.05)
        return await route.weight()

    assert drive(api, tmp_path, work) == 0.05
    assert api.weights == [950, 50]
    assert len(api.patches) == 1
    expected = copy.deepcopy(ROUTE)
    for ref, weight in zip(expected["spec"]["rules"][1]["backendRefs"], (950, 50), strict=True):
        ref["weight"] = weight
    assert api.route["spec"] == expected["spec"]
    assert api.tokens == {"Bearer planted-token"}


def test_a_change_by_somebody_else_is_read_and_kept(tmp_path: Path) -> None:
    api = KubernetesApi()

    def add_a_rule_in_front() -> None:
        api.meddle = lambda: None
        api.route["spec"]["rules"].insert(0, {"name": "new", "backendRefs": [{"name": "blog", "weight": 3}]})
        api.touch()

    api.meddle = add_a_rule_in_front
    drive(api, tmp_path, lambda route: route.set(0.25))
    assert len(api.patches) == 2
    assert api.route["spec"]["rules"][0] == {"name": "new", "backendRefs": [{"name": "blog", "weight": 3}]}
    assert [ref["weight"] for ref in api.route["spec"]["rules"][2]["backendRefs"]] == [750, 250]


def test_who_changes_it_all_the_time_wins_and_is_told_of(tmp_path: Path) -> None:
    api = KubernetesApi()
    api.meddle = api.touch
    with pytest.raises(ConflictError, match="changed by somebody else all the time.*the object has been modified"):
        drive(api, tmp_path, lambda route: route.set(0.25))
    assert api.weights == [None, 0]


def test_what_the_api_does_not_allow_is_told_in_its_own_words_and_asked_once(tmp_path: Path) -> None:
    api = KubernetesApi()
    api.objection = "spec.rules[1]: weights are changed on weekdays only"
    with pytest.raises(RouterError, match="422.*weights are changed on weekdays only.*nobody else") as told:
        drive(api, tmp_path, lambda route: route.set(0.25))
    assert not isinstance(told.value, ConflictError) and len(api.patches) == 1


@pytest.mark.parametrize(
    ("rule", "change", "says"),
    [
        ("absent", lambda rule: None, "there are 0 rules of that name"),
        ("models", lambda rule: rule["backendRefs"].pop(), "name the Service router-canary once"),
        ("models", lambda rule: rule["backendRefs"].append({"name": "third"}), "other backends"),
    ],
)
def test_a_route_that_is_not_as_it_has_to_be_is_left_alone(tmp_path: Path, rule: str, change: Any, says: str) -> None:
    api = KubernetesApi()
    change(api.route["spec"]["rules"][1])
    with pytest.raises(RouterError, match=says):
        drive(api, tmp_path, lambda route: route.set(0.25), rule)
    assert not api.patches


def test_outside_a_pod_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="no Kubernetes API can be reached from here"):
        KubernetesConfig.in_cluster()
