"""Releases on a real cluster under load: promoted, rolled back, a rollback on demand; and a pod that is scaled away."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest

from include.code_identity import PROJECT
from include.laptop.home import python_of
from tests.kubernetes.namespace import SERVING_IMAGE, TOKEN, Namespace, pod, wait_for

TARGET = "toy"
POLICY = {
    "steps": [0.3, 0.6],
    "step_seconds": 4,
    "look_seconds": 1,
    "min_requests": 40,
    "max_seconds": 240,
    "baseline_requests": 30,
    "baseline_seconds": 20,
    "max_bad_rate": 0.15,
    # The nodes of a test are busy with more than this: how long an answer takes is not what is looked at here.
    "latency_tolerance": 20,
    "quality": {"golden_prompts": 4},
}
_ENGINES = """
import json, sys, tempfile
from pathlib import Path
from include.artifacts.store import Store
from tests.jobs.triton.engine_fixture import commit_engine, make_engine
store = Store(sys.argv[1])
for seed in (1, 2):
    with tempfile.TemporaryDirectory() as folder:
        artifact = commit_engine(store, f"engine-{seed}", make_engine(Path(folder) / "engine", seed))
    print(json.dumps(artifact.model_dump()))
"""


@pytest.fixture(scope="module")
def engines(namespace: Namespace) -> list[dict[str, Any]]:
    command = [str(python_of("serving")), "-c", _ENGINES, os.environ["ANEMONE_STORE"]]
    made = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in made.stdout.splitlines()]


@pytest.fixture(scope="module")
def lead(namespace: Namespace, serving: str, engines: list[dict[str, Any]]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Ask for a rollout of version 1 or 2, and wait for its end."""
    with namespace.forward("canary-controller", 8002) as url:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        controller = httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)

        def status(rollout: str) -> dict[str, Any]:
            try:
                answer = controller.get(f"/rollouts/{rollout}")
            except httpx.HTTPError:
                return {}
            return answer.json() if answer.status_code == 200 else {}

        def begin(version: int, champion: str | None, **more: Any) -> dict[str, Any]:
            release = {"model": TARGET, "version": str(version), "engine": engines[version - 1]}
            request = {"id": f"release-{uuid4().hex[:8]}", "kind": "release", "target": TARGET, "policy": POLICY}
            request |= {"release": release, "expected_champion": champion, **more}
            answer = controller.post("/rollouts", json=request)
            assert answer.status_code in (200, 201), answer.text
            told = partial(status, request["id"])
            wait_for(lambda: told().get("state") == "finished", 600, lambda: f"the end of the rollout: {told()}")
            return told()

        yield begin


@pytest.fixture
def traffic(namespace: Namespace, serving: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Clients in a pod of their own, twenty requests a second; what they saw so far."""
    name = f"traffic-{uuid4().hex[:8]}"
    command = ["python", "-m", "jobs.traffic", "--url=http://router:8000", f"--model={TARGET}", "--rate=20"]
    namespace.create(pod(name, SERVING_IMAGE, [*command, "--out=/scratch/counts.json"]))

    def counts() -> dict[str, Any]:
        return json.loads(namespace.kubectl("exec", name, "--", "cat", "/scratch/counts.json"))

    def begun() -> bool:
        try:
            return counts()["answered"] > 20
        except (AssertionError, ValueError):
            return False

    wait_for(begun, 120, lambda: namespace.log(name))
    yield counts
    namespace.delete("pod", name, "--now")


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


def test_a_pod_that_is_scaled_away_under_load_ends_what_it_has_begun(
    namespace: Namespace, traffic: Callable[[], dict[str, Any]]
) -> None:
    stable = "app.kubernetes.io/name=triton,anemone/tier=stable"
    namespace.kubectl("rollout", "status", "deployment/triton-stable", "--timeout=300s")
    assert len(namespace.listed("pods", stable)) == 2
    before = traffic()
    namespace.kubectl("scale", "deployment/triton-stable", "--replicas=1")
    wait_for(lambda: len(namespace.listed("pods", stable)) == 1, 180, "the end of one of two pods")
    time.sleep(5)
    after = traffic()
    assert after["answered"] > before["answered"] + 50 and not after["failed"], after
