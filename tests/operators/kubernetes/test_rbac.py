"""The operators and their triggers against the roles that a cluster gives them: enough, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException

from include.home import PROJECT
from operators.kubernetes.pod_trigger import PodJobTrigger
from operators.kubernetes.training_trigger import TrainingTrigger
from tests.kubernetes.rbac import Right, granted, needed
from tests.operators.kubernetes import test_pod_operator, test_training_operator
from tests.operators.kubernetes.api import TrainingPeer, _another, _status, now
from tests.operators.kubernetes.test_training_operator import (  # noqa: F401
    context,
    deferred,
    follow,
    long_ago,
    platform,
    refuse_pods,
    soon,
    store_text,
    task,
)

ROLES = PROJECT / "include" / "deploy" / "kubernetes"


class GuardedPeer(TrainingPeer):
    """Answers what the requesting account's roles grant, and records the requests.

    Attributes:
        account: that sends the requests now: `worker` or `triggerer`.
        on_log: what happens when a pod's log is read.
        custom: Kubeflow's objects, by resource and name; with them come no pods.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.account = "worker"
        self.on_log = lambda: None
        self.granted = {
            account: granted(ROLES / "airflow" / "rbac.yaml", f"anemone-{account}")
            | granted(ROLES / "kubeflow" / "rbac.yaml", f"anemone-{account}-kubeflow")
            for account in ("worker", "triggerer")
        }
        self.used: dict[str, set[Right]] = {account: set() for account in self.granted}
        self.refused: dict[str, set[Right]] = {account: set() for account in self.granted}
        self.custom: dict[str, dict[str, dict]] = {"trainjobs": {}, "trainingruntimes": {}, "pytorchjobs": {}}

    @contextmanager
    def as_triggerer(self) -> Iterator[None]:
        self.account = "triggerer"
        try:
            yield
        finally:
            self.account = "worker"

    def answer(self, method, path, body, query):
        right = needed(method, path, query)
        self.used[self.account].add(right)
        if right not in self.granted[self.account]:
            self.refused[self.account].add(right)
            return _status(403, f"cannot {right.verb} resource {right.resource!r}", reason="Forbidden")
        if right.resource == "pods/log":
            self.on_log()
        if right.resource in self.custom:
            return self._custom(method, path, body, self.custom[right.resource])
        if (right.verb, right.resource) == ("delete", "services") and path[-1] in self.services:
            refusal = _another(self.services[path[-1]], body)
            return refusal or (200, self.services.pop(path[-1]))
        return super().answer(method, path, body, query)

    def _custom(self, method, path, body, kept):
        if method == "POST":
            made = self._keep(kept, body)
            if made[0] == 201 and body["kind"] != "TrainingRuntime":
                self.on_job(body)
            return made
        if path[-1] not in kept:
            return _status(404, "not found")
        if method != "DELETE":
            return 200, kept[path[-1]]
        return _another(kept[path[-1]], body) or (200, kept.pop(path[-1]))


@pytest.fixture
def peer_class():
    return GuardedPeer


@pytest.fixture
def kubernetes(kubernetes, monkeypatch):
    """An API of two accounts: triggers run as the triggerer, everything else as the worker."""
    for module in (test_training_operator, test_pod_operator):
        monkeypatch.setattr(module, "fires", partial(_as_triggerer, kubernetes, module.fires))
    return kubernetes


def _as_triggerer(peer, fires, trigger):
    with peer.as_triggerer():
        return fires(trigger)


def killed(kubernetes, trigger) -> None:
    """A person marks the deferred task: its trigger, in another process, clears up."""
    _, arguments = trigger.serialize()
    again = {TrainingTrigger: TrainingTrigger, PodJobTrigger: PodJobTrigger}[type(trigger)](**arguments)
    with kubernetes.as_triggerer():
        asyncio.run(again.on_kill())


def test_the_roles_are_enough_and_no_more(task, kubernetes, store, commit):  # noqa: F811
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

    # Several nodes: one that fails, and one in whose way an earlier training's Service is, which is then marked: once
    # while it runs in the worker, once while it is deferred.
    kubernetes.on_job = end_badly
    with pytest.raises(AirflowException, match="rank 1 was killed"):
        follow(task)
    old = {"metadata": {"name": "old", "uid": "old"}}
    kubernetes.on_job = lambda job: kubernetes.services.update({job["metadata"]["name"]: old})
    marked = task()
    deferred(marked)
    marked.on_kill()
    kubernetes.on_job = lambda job: None
    killed(kubernetes, deferred(task()))
    assert kubernetes.jobs == {}
    # One whose pods are not created: its Job's events say why.
    kubernetes.on_job = refuse_pods(kubernetes)
    event = test_training_operator.fires(long_ago(deferred(task())))
    with pytest.raises(AirflowException, match="exceeded quota"):
        task().training_ended(context(), event)
    # One pod: one that fails, whose events are read, and one that is marked.
    waiting = test_pod_operator.deferred(task(nodes=1), context())
    (pod,) = kubernetes.pods.values()
    kubernetes.status(pod, "Failed", state={"terminated": {"exitCode": 75, "message": "later", "reason": "Error"}})
    event = test_pod_operator.fires(waiting.trigger)
    with pytest.raises(AirflowException, match="later"):
        task(nodes=1).trigger_reentry(context(), event)
    killed(kubernetes, test_pod_operator.deferred(task(nodes=1), context()).trigger)
    assert kubernetes.pods == {}
    # One whose log the triggerer follows, and one that ends well.
    waiting = test_pod_operator.deferred(task(nodes=1, logging_interval=0.01), context())
    (pod,) = kubernetes.pods.values()
    kubernetes.status(pod, "Running", state={"running": {"startedAt": now()}}, startTime=now())
    ended = {"terminated": {"exitCode": 75, "message": "later", "reason": "Error"}}
    kubernetes.on_log = lambda: kubernetes.status(pod, "Failed", state=ended)
    test_pod_operator.fires(waiting.trigger)
    killed(kubernetes, waiting.trigger)
    kubernetes.on_job = end_well
    assert follow(task)
    for account, used in kubernetes.used.items():
        assert used == granted(ROLES / "airflow" / "rbac.yaml", f"anemone-{account}"), account


@pytest.mark.parametrize("form", ["trainjob", "pytorchjob"])
def test_kubeflows_roles_are_enough_and_no_more(task, platform, kubernetes, store, commit, monkeypatch, form):  # noqa: F811
    cluster = platform.cluster.model_copy(update={"training": form})
    monkeypatch.setattr(type(task()), "cluster", property(lambda _: cluster))
    resource = f"{form}s"

    def end_well(training):
        commit(json.loads(store_text(store, training))["output"]["name"], {"a": "1"}, job="finetune")
        kubernetes.end(training, "Complete" if form == "trainjob" else "Succeeded")

    kubernetes.on_job = lambda training: None
    killed(kubernetes, deferred(task()))
    assert kubernetes.custom[resource] == {}
    kubernetes.on_job = end_well
    # The runtime of the one that was marked is in the way of this one: no garbage collector is here to take it.
    assert follow(task)
    used = {right for account in kubernetes.used.values() for right in account}
    assert Right("create", "kubeflow.org" if form == "pytorchjob" else "trainer.kubeflow.org", resource) in used
    others = {"pytorchjobs"} if form == "trainjob" else {"trainjobs", "trainingruntimes"}
    for account, used in kubernetes.used.items():
        role = granted(ROLES / "kubeflow" / "rbac.yaml", f"anemone-{account}-kubeflow")
        assert not kubernetes.refused[account], account
        assert {right for right in used if right in role} == {right for right in role if right.resource not in others}


def test_a_right_that_is_missing_is_told_by_name(task, kubernetes):  # noqa: F811
    kubernetes.granted["worker"] -= {Right("create", "", "pods")}
    with pytest.raises(AirflowException, match="may not|not allowed|cannot"):
        task(nodes=1).execute(context())
    assert kubernetes.refused["worker"] == {Right("create", "", "pods")}


def test_the_triggerer_makes_and_changes_nothing():
    for folder, suffix in (("airflow", ""), ("kubeflow", "-kubeflow")):
        path = ROLES / folder / "rbac.yaml"
        own, workers = (granted(path, f"anemone-{account}{suffix}") for account in ("triggerer", "worker"))
        assert {right.verb for right in own} <= {"get", "list", "delete"}
        assert own < workers


@pytest.mark.parametrize("role", ["anemone-worker", "anemone-triggerer", "airflow-executor"])
def test_no_role_reads_secrets_or_runs_commands_in_pods(role):
    resources = {right.resource for right in granted(ROLES / "airflow" / "rbac.yaml", role)}
    assert not resources & {"secrets", "pods/exec", "pods/attach", "pods/portforward", "roles", "rolebindings"}
