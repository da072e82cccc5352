"""The weights of a real HTTPRoute, moved with the rights of the canary controller. No Gateway need answer for it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import config

from include.home import PROJECT
from jobs.serving.canary.traffic.http_route import GROUP, HTTPRoute, KubernetesConfig
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from tests.kubernetes.namespace import TOKEN, Namespace, need_resource, secret, wait_for
from tests.kubernetes.serving import POLICY, Controller, clients, controller, deploy

FOLDER = PROJECT / "include" / "deploy" / "kubernetes" / "gateway"
ACCOUNT = "canary-controller"
TARGET = "kubectl"
"""Of the component, as it is shipped."""

HEADER = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-from", "value": "us"}]}}
OTHERS = {
    "name": "others",
    "matches": [{"path": {"type": "PathPrefix", "value": "/others"}}],
    "filters": [HEADER],
    "backendRefs": [{"name": "router", "port": 8000, "weight": 5}, {"name": "router-canary", "port": 8000}],
}
"""A rule that is not the controller's business, to the very same Services."""


class Meddled(HTTPRoute):
    """Lets somebody else write between what it has read and what it writes.

    Attributes:
        meddle: called before each write.
        writes: how often it has tried to.
    """

    meddle: Callable[[], object]
    writes: int

    async def _call(self, method: str, body: Any = None) -> dict[str, Any]:
        if method == "PATCH":
            self.writes += 1
            await asyncio.to_thread(self.meddle)
        return await super()._call(method, body)


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    need_resource(GROUP, "httproutes")
    with Namespace.made(f"anemone-test-{uuid4().hex[:8]}") as found:
        found.kubectl("apply", "--validate=strict", "--filename", str(FOLDER / "rbac.yaml"))
        yield found


@pytest.fixture
def spec(place: Namespace) -> Iterator[dict[str, Any]]:
    """The shipped route as the API server keeps it, after its owner has added to it what is his."""
    document = yaml.safe_load((FOLDER / "httproute.yaml").read_text())
    (rule,) = document["spec"]["rules"]
    rule |= {"filters": [HEADER], "timeouts": {"request": "60s"}}
    rule["backendRefs"][0]["filters"] = [HEADER]
    document["spec"]["rules"] = [OTHERS, rule]
    place.kubectl("create", "--validate=strict", "--filename", "-", stdin=json.dumps(document))
    yield route(place)["spec"]
    place.delete("httproute", "models")


@pytest.fixture(scope="module")
def api(place: Namespace, tmp_path_factory: pytest.TempPathFactory) -> KubernetesConfig:
    """The API server, asked as the controller's service account."""
    folder = tmp_path_factory.mktemp("account")
    (folder / "token").write_text(place.kubectl("create", "token", ACCOUNT))
    reached = config.new_client_from_config().configuration
    certificate = Path(reached.ssl_ca_cert) if reached.ssl_ca_cert else None
    return KubernetesConfig(reached.host, folder / "token", certificate, place.name)


def route(place: Namespace) -> dict[str, Any]:
    found = place.get("httproute", "models")
    assert found is not None
    return found


def weights(place: Namespace, name: str = "models") -> list[int]:
    (rule,) = [rule for rule in route(place)["spec"]["rules"] if rule["name"] == name]
    return [ref["weight"] for ref in rule["backendRefs"]]


def drive(
    api: KubernetesConfig,
    work: Callable[[Meddled], Any],
    meddle: Callable[[], object] = lambda: None,
    name: str = "models",
):
    async def run() -> tuple[Any, int]:
        async with Meddled(api, name, "models", "router", "router-canary") as driver:
            driver.meddle, driver.writes = meddle, 0
            return await work(driver), driver.writes

    return asyncio.run(run())


def test_two_numbers_move_and_nothing_else_does(place: Namespace, api: KubernetesConfig, spec: dict[str, Any]) -> None:
    async def work(driver: HTTPRoute) -> float:
        await driver.set(0.05)
        await driver.set(0.05)
        return await driver.weight()

    assert drive(api, work) == (0.05, 1)
    expected = copy.deepcopy(spec)
    for ref, weight in zip(expected["rules"][1]["backendRefs"], (950, 50), strict=True):
        ref["weight"] = weight
    assert route(place)["spec"] == expected
    assert weights(place, "others") == [5, 1]


def _annotate(place: Namespace) -> None:
    place.kubectl("annotate", "httproute", "models", "--overwrite", f"who/when={uuid4()}")


def _put_a_rule_in_front(place: Namespace) -> None:
    rule = {"name": "front", "backendRefs": [{"name": "blog", "port": 80, "weight": 3}]}
    patch = json.dumps([{"op": "add", "path": "/spec/rules/0", "value": rule}])
    place.kubectl("patch", "httproute", "models", "--type=json", "--patch", patch)


@pytest.mark.parametrize("change", [_annotate, _put_a_rule_in_front])
def test_what_somebody_else_writes_meanwhile_is_kept(
    place: Namespace, api: KubernetesConfig, spec: dict[str, Any], change: Callable[[Namespace], None]
) -> None:
    once = iter([lambda: change(place)])
    _, writes = drive(api, lambda driver: driver.set(0.25), lambda: next(once, lambda: None)())
    assert writes == 2
    assert weights(place) == [750, 250] and weights(place, "others") == [5, 1]
    found = route(place)
    if change is _annotate:
        assert "who/when" in found["metadata"]["annotations"]
    else:
        assert [rule["name"] for rule in found["spec"]["rules"]] == ["front", "others", "models"]
        assert found["spec"]["rules"][0]["backendRefs"][0]["weight"] == 3


def test_who_writes_all_the_time_wins_and_is_told_of(
    place: Namespace, api: KubernetesConfig, spec: dict[str, Any]
) -> None:
    with pytest.raises(ConflictError, match="changed by somebody else all the time"):
        drive(api, lambda driver: driver.set(0.25), lambda: _annotate(place))
    assert route(place)["spec"] == spec


def test_the_account_may_read_and_patch_this_route_and_nothing_more(
    place: Namespace, api: KubernetesConfig, spec: dict[str, Any]
) -> None:
    allowed = {
        (verb, name)
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete")
        for name in ("models", "another")
        if _may(place, verb, name)
    }
    assert allowed == {("get", "models"), ("patch", "models")}
    with pytest.raises(RouterError, match="answered GET of HTTPRoute .*/another, rule models with 403"):
        drive(api, lambda driver: driver.weight(), name="another")


def _may(place: Namespace, verb: str, name: str) -> bool:
    account = f"system:serviceaccount:{place.name}:{ACCOUNT}"
    command = ["kubectl", "auth", "can-i", verb, f"httproutes.{GROUP.partition('/')[0]}/{name}", "--as", account]
    asked = subprocess.run([*command, "--namespace", place.name], capture_output=True, text=True)
    assert asked.stdout.strip() in ("yes", "no"), asked.stderr
    return asked.stdout.strip() == "yes"


@pytest.fixture
def released(
    place: Namespace, namespace: Namespace, engines: list[dict[str, Any]], tmp_path: Path
) -> Iterator[tuple[Namespace, Controller]]:
    """The serving side with the gateway's component, on the store of the session's namespace."""
    with Namespace.made(f"{place.name}-release") as found:
        found.s3_endpoint = namespace.s3_endpoint
        found.create(
            secret(
                "store-credentials",
                access_key=os.environ["AWS_ACCESS_KEY_ID"],
                secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            ),
            secret("serving-token", token=TOKEN),
        )
        deploy(found, tmp_path, "gateway")
        with controller(found, TARGET, engines) as leads:
            yield found, leads


def test_a_controller_with_this_account_leads_a_release_by_the_routes_weights(
    released: tuple[Namespace, Controller],
) -> None:
    place, leads = released
    first = leads.lead(1, None)
    assert first["outcome"] == "promoted" and weights(place) == [1000, 0], first
    # As a gateway would send them at 0.3.
    with clients(place, "router", TARGET, 14) as stable, clients(place, "router-canary", TARGET, 6) as canary:
        second = leads.begin(2, "1", policy={**POLICY, "steps": [0.3]})
        wait_for(lambda: weights(place) == [700, 300], 300, lambda: f"the step: {leads.status(second)}", every=0.5)
        ended = leads.ended(second)
        assert ended["outcome"] == "promoted" and weights(place) == [1000, 0], ended
        assert ended["figures"]["canary_requests"] >= POLICY["min_requests"]
        for seen in (stable(), canary()):
            assert seen["answered"] > 60 and not seen["failed"], seen
