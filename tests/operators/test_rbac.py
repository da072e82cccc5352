"""The operators against the role that a cluster gives them: it is enough, and nothing in it is left over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException

from include.code_identity import PROJECT
from tests.kubernetes.rbac import Right, granted, needed
from tests.operators import test_distributed, test_pods
from tests.operators.kubernetes_api import _status
from tests.operators.test_distributed import context, deferred, follow, platform, store_text, task  # noqa: F401

ROLES = PROJECT / "include" / "deploy" / "kubernetes"


class GuardedPeer(test_distributed.TrainingPeer):
    """Answers what the role grants, and keeps what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.granted = granted(ROLES / "airflow" / "rbac.yaml", "anemone-operators")
        self.used: set[Right] = set()
        self.refused: set[Right] = set()

    def answer(self, method, path, body, query):
        right = needed(method, path, query)
        self.used.add(right)
        if right not in self.granted:
            self.refused.add(right)
            return _status(403, f"cannot {right.verb} resource {right.resource!r}", reason="Forbidden")
        if (right.verb, right.resource) == ("delete", "services") and path[-1] in self.services:
            return 200, self.services.pop(path[-1])
        return super().answer(method, path, body, query)


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    monkeypatch.setattr(test_distributed, "TrainingPeer", GuardedPeer)
    yield from test_distributed.kubernetes.__wrapped__(tmp_path, monkeypatch)


def test_the_role_is_enough_and_no_more(task, kubernetes, store, commit):  # noqa: F811
    def end_well(job):
        plan = json.loads(store_text(store, job))
        commit(plan["output"]["name"], {"adapter/a": "1"}, job="finetune", metrics={"steps": 10})
        for pod in kubernetes.nodes(job):
            kubernetes.logs[pod["metadata"]["name"]] = "train step=10\n"
            kubernetes.exit(pod, 0)
        kubernetes.end(job)

    def end_badly(job):
        for pod in kubernetes.nodes(job):
            kubernetes.exit(pod, 75, "rank 1 was killed", 1)
        kubernetes.end(job, "Failed", "PodFailurePolicy")

    # Several nodes: one that fails, and one in whose way an earlier training's Service is, which is then marked.
    kubernetes.on_job = end_badly
    with pytest.raises(AirflowException, match="rank 1 was killed"):
        follow(task)
    kubernetes.on_job = lambda job: kubernetes.services.update({job["metadata"]["name"]: {"metadata": {"name": "old"}}})
    marked = task()
    deferred(marked)
    marked.on_kill()
    # One pod: one that fails, whose events are read.
    waiting = test_pods.deferred(task(nodes=1), context())
    (pod,) = kubernetes.pods.values()
    kubernetes.status(pod, "Failed", state={"terminated": {"exitCode": 75, "message": "later", "reason": "Error"}})
    event = test_pods.fires(waiting.trigger)
    with pytest.raises(AirflowException, match="later"):
        task(nodes=1).trigger_reentry(context(), event)
    # And one that ends well.
    kubernetes.on_job = end_well
    assert follow(task)
    assert not kubernetes.refused
    assert kubernetes.granted - kubernetes.used == set()


def test_a_right_that_is_missing_is_told_by_name(task, kubernetes):  # noqa: F811
    kubernetes.granted -= {Right("create", "", "pods")}
    with pytest.raises(AirflowException, match="may not|not allowed|cannot"):
        task(nodes=1).execute(context())
    assert kubernetes.refused == {Right("create", "", "pods")}


@pytest.mark.parametrize("role", ["anemone-operators", "airflow-executor"])
def test_no_role_reads_secrets_or_runs_commands_in_pods(role):
    resources = {right.resource for right in granted(ROLES / "airflow" / "rbac.yaml", role)}
    assert not resources & {"secrets", "pods/exec", "pods/attach", "pods/portforward", "roles", "rolebindings"}
