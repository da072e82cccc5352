"""Releases on a real cluster under load: promoted, rolled back, a rollback on demand; and a pod that is scaled away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from airflow.sdk.exceptions import TaskDeferred

from include.artifacts.store import Store
from include.platforms import load_platform
from operators import CanaryRolloutOperator
from tests.kubernetes.namespace import TOKEN, Namespace, wait_for
from tests.kubernetes.serving import POLICY, clients, controller, without_store
from tests.kubernetes.task import wait

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


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let a task's process and the triggerer reach the controller at an address."""
    (tmp_path / "token").write_text(TOKEN)

    def reach(url: str) -> None:
        platform = load_platform("cpu-cluster")
        serving = platform.serving.model_copy(update={"controller_url": url, "token_file": str(tmp_path / "token")})
        platform = platform.model_copy(update={"serving": serving})
        for module in ("rollout_operator", "trigger"):
            monkeypatch.setattr(f"operators.release.{module}.current_platform", lambda: platform)

    return reach


def test_a_release_whose_evidence_the_store_does_not_take_is_live_and_says_where_it_will_be(
    namespace: Namespace,
    engines: list[dict[str, Any]],
    reach: Callable[[str], None],
    traffic: Callable[[], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The champion's engine under another version, which the servers have: only the evidence needs the store."""
    if namespace.get("service", "store") is None:
        pytest.skip("the store is not one that the tests have brought")
    caplog.set_level("INFO")
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(dag_id="release", task_id="canary", map_index=-1, max_tries=30)
    ti.xcom_push = lambda key, value: pushed.update({key: value})
    state = SimpleNamespace(get=lambda _: None, set=lambda *_: None)
    context = {"run_id": uuid4().hex, "ti": ti, "task_state_store": state}
    kwargs = {"kind": "release", "target": TARGET, "version": "3", "engine": engines[0]["uri"], "policy": POLICY}
    operator = CanaryRolloutOperator(task_id="canary", expected_champion="1", **kwargs)
    with controller(namespace, TARGET, engines) as found:
        reach(found.url)
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context)
        rollout = deferred.value.trigger.rollout
        wait_for(lambda: found.status(rollout).get("step") == len(POLICY["steps"]) - 1, 300, "the last step", every=0.2)
        with without_store(namespace):
            event = wait(deferred.value)
            verdict = operator.resume(context, event)
            assert (verdict["outcome"], verdict["version"]) == ("promoted", "3")
            time.sleep(30)
            status = found.status(rollout)
            assert status["evidence"] is None and status["evidence_pending"] == verdict["evidence"]
            assert pushed == {"evidence": verdict["evidence"], "evidence_pending": verdict["evidence"]}
        log = caplog.text + capsys.readouterr().out
        assert f"the evidence of rollout {rollout} is not in the store yet: the canary controller keeps it" in log
        wait_for(lambda: found.status(rollout).get("evidence"), 60, lambda: str(found.status(rollout)))
    store, name = Store.of(verdict["evidence"])
    manifest = store.manifest(name)
    assert manifest is not None
    seen = traffic()
    assert seen["answered"] > 200 and not seen["failed"], seen


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
