"""Jobs as pods of a real cluster: what goes well, and what happens to pods at night."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from include.artifacts.store import Store
from include.platforms import Platform
from tests.kubernetes.namespace import Namespace, wait_for
from tests.kubernetes.task import Task, adopted, mark_failed


def rows(number: int, size: str = "small") -> dict[str, Any]:
    return {"job": "generate", "config": {"variant": "heldout", "rows": number}, "size": size}


def watching(source: str, seconds: float) -> dict[str, Any]:
    """A job that takes as long as is said: it watches whether its source changes."""
    return {"job": "ingest", "config": {"source": source, "settle_seconds": seconds}}


def until_it_works(namespace: Namespace, name: str) -> None:
    """Until the pod's job has taken its spec, and so catches the signal that ends a pod."""
    wait_for(lambda: namespace.phase(name) == "Running", 120, f"pod {name} to run")
    wait_for(lambda: "started job=" in namespace.log(name), 60, f"the job of pod {name} to begin")


@pytest.fixture
def working(platform: Platform, namespace: Namespace, source: str, run: str) -> Iterator[tuple[Task, TaskDeferred]]:
    """A task that has deferred, and whose pod works until it is stopped."""
    task = Task(run, watching(source, 900))
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    until_it_works(namespace, task.pod)
    yield task, deferred
    namespace.delete("pod", task.pod, "--now")


def test_a_job_runs_as_a_pod_and_nothing_of_it_stays(
    platform: Platform, namespace: Namespace, artifacts: Store, run: str
) -> None:
    task = Task(run, rows(5))
    uri = task.follow()
    name = uri.rpartition("/")[2]
    assert len(artifacts.read_bytes(name, "data.jsonl").splitlines()) == 5
    manifest = artifacts.manifest(name)
    assert manifest is not None and manifest.job == "generate"
    wait_for(lambda: namespace.uid("pod", task.pod) is None, 60, "the pod to be gone")
    assert task.follow() == uri
    assert namespace.uid("pod", task.pod) is None, "what was made before needs no pod"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "was deleted, by hand or by the cluster"),
        # Nothing of it is left between two looks of the trigger.
        (("--force", "--grace-period=0"), "(is gone, and nobody saw it end|was deleted, by hand)"),
    ],
    ids=["with its grace", "by force"],
)
def test_a_pod_that_is_deleted_by_hand_ends_its_task_with_one_sentence(
    namespace: Namespace,
    working: tuple[Task, TaskDeferred],
    options: tuple[str, ...],
    says: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO")
    task, deferred = working
    threading.Timer(3, namespace.delete, ("pod", task.pod, *options)).start()
    with pytest.raises(AirflowException, match=f"pod {task.pod} {says}") as failed:
        task.resume(deferred)
    assert not isinstance(failed.value, AirflowFailException)
    log = caplog.text + capsys.readouterr().out
    for noise in ("404", "Traceback", "HTTP response headers", "[error", "ERROR"):
        assert noise not in log, log


def test_out_of_memory(platform: Platform, run: str) -> None:
    # Where it happens within a moment of the start, a node may know no more than that the process was killed.
    with pytest.raises(AirflowException, match=r"(ran out of memory \(limit 24Mi|killed)"):
        Task(run, rows(400_000, "tiny")).follow()


def test_an_image_that_is_not_there(
    platform: Platform, namespace: Namespace, use: Callable[..., None], run: str
) -> None:
    use(images={"jobs": "anemone.invalid/nothing:1"})
    says = r"the image anemone\.invalid/nothing:1 (cannot|could not) be pulled"
    task = Task(run, rows(6))
    with pytest.raises(AirflowException, match=says):
        task.follow()
    wait_for(lambda: namespace.uid("pod", task.pod) is None, 60, "the pod to be gone")


def test_no_node_is_large_enough(platform: Platform, namespace: Namespace, run: str) -> None:
    task = Task(run, rows(7, "huge"), schedule_timeout_seconds=6)
    with pytest.raises(AirflowException, match=r"no node took pod .* within 6 s \(.*nsufficient cpu"):
        task.follow()
    wait_for(lambda: namespace.uid("pod", task.pod) is None, 60, "the pod to be gone")


def test_the_next_try_adopts_the_pod_of_a_killed_worker(
    platform: Platform, namespace: Namespace, artifacts: Store, source: str, run: str
) -> None:
    _, uri = adopted(namespace, "pod", run, watching(source, 15), begun=until_it_works)
    assert artifacts.manifest(uri.rpartition("/")[2]) is not None


def test_marking_a_task_as_failed_deletes_its_pod_and_the_next_one_waits_for_its_end(
    namespace: Namespace, working: tuple[Task, TaskDeferred]
) -> None:
    task, deferred = working
    first = namespace.uid("pod", task.pod)
    mark_failed(deferred)
    found = namespace.get("pod", task.pod)
    assert found is None or "deletionTimestamp" in found["metadata"]
    again = task.begin()
    assert isinstance(again, TaskDeferred)
    assert namespace.uid("pod", task.pod) not in (first, None)
    mark_failed(again)
    wait_for(lambda: namespace.uid("pod", task.pod) is None, 120, "the second pod to be gone")


def test_no_secret_is_told(namespace: Namespace, working: tuple[Task, TaskDeferred]) -> None:
    task, deferred = working
    found = namespace.get("pod", task.pod)
    assert found is not None
    secrets = [entry for entry in found["spec"]["containers"][0]["env"] if "valueFrom" in entry]
    assert {entry["name"] for entry in secrets} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    told = json.dumps(found) + namespace.log(task.pod) + repr(deferred.trigger.serialize())
    credentials = namespace.get("secret", "store-credentials")
    assert credentials is not None
    secret = base64.b64decode(credentials["data"]["secret-key"]).decode()
    assert secret not in told
