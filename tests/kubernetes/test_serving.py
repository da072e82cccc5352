"""Releases on a real cluster under load: promoted, rolled back, a rollback on demand; and a pod that is scaled away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.kubernetes.namespace import Namespace, wait_for
from tests.kubernetes.serving import POLICY, clients, controller

TARGET = "toy"


@pytest.fixture(scope="module")
def lead(namespace: Namespace, serving: str, engines: list[dict[str, Any]]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Ask for a rollout of version 1 or 2, and wait for its end."""
    with controller(namespace, TARGET, engines) as found:
        yield found.lead


@pytest.fixture
def traffic(namespace: Namespace, serving: str) -> Iterator[Callable[[], dict[str, Any]]]:
    with clients(namespace, "router", TARGET, 20) as counts:
        yield counts


def live(serving: str) -> bool:
    ask = {"model": TARGET, "messages": [{"role": "user", "content": "list the pods"}], "max_tokens": 8}
    answer = httpx.post(f"{serving}/v1/chat/completions", json=ask, timeout=30, trust_env=False)
    return answer.status_code == 200


def test_a_first_release_is_live(lead: Callable[..., dict[str, Any]], serving: str) -> None:
    ended = lead(1, None)
    assert ended["outcome"] == "promoted", ended
    assert live(serving)


def test_a_canary_is_promoted_under_load_and_no_request_fails(
    lead: Callable[..., dict[str, Any]], traffic: Callable[[], dict[str, Any]], serving: str
) -> None:
    ended = lead(2, "1")
    assert ended["outcome"] == "promoted", ended
    assert ended["champion"]["release"]["version"] == "2"
    assert ended["figures"]["canary_requests"] >= POLICY["min_requests"]
    seen = traffic()
    assert seen["answered"] > 200 and not seen["failed"], seen


def test_a_bad_canary_is_rolled_back_under_load(
    lead: Callable[..., dict[str, Any]], traffic: Callable[[], dict[str, Any]], serving: str
) -> None:
    ended = lead(1, "2", drill="failing")
    assert ended["outcome"] == "rolled_back", ended
    assert ended["champion"]["release"]["version"] == "2"
    before = traffic()
    # The canary's every third answer was a failure; the champion gave these answers instead.
    assert not before["failed"], before
    time.sleep(5)
    after = traffic()
    assert after["answered"] > before["answered"] and not after["failed"], after


def test_a_rollback_under_load_brings_the_version_before_and_no_request_fails(
    lead: Callable[..., dict[str, Any]], traffic: Callable[[], dict[str, Any]]
) -> None:
    ended = lead(1, None, kind="rollback", release=None)
    assert ended["outcome"] == "promoted", ended
    assert ended["champion"]["release"]["version"] == "1"
    seen = traffic()
    assert seen["answered"] > 20 and not seen["failed"], seen


def test_the_champions_pods_come_and_go_and_no_request_fails(
    namespace: Namespace, lead: Callable[..., dict[str, Any]], traffic: Callable[[], dict[str, Any]], serving: str
) -> None:
    """A new pod takes requests once it has what is live; one that goes has first answered what it took."""
    deployment, pods = "deployment/triton-stable", "app.kubernetes.io/name=triton,anemone/tier=stable"
    before = {pod["metadata"]["uid"] for pod in namespace.listed("pod", pods)}
    namespace.kubectl("rollout", "restart", deployment)
    namespace.kubectl("rollout", "status", deployment, "--timeout=600s")
    namespace.kubectl("scale", deployment, "--replicas=1")
    wait_for(lambda: len(namespace.listed("pod", pods)) == 1, 300, "the other pods to be gone")
    assert not before & {pod["metadata"]["uid"] for pod in namespace.listed("pod", pods)}
    seen = traffic()
    assert seen["answered"] > 200 and not seen["failed"], seen
