"""Training on a real cluster: on two nodes as on one, and through what takes a pod away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from include.artifacts.store import Store
from include.platforms import Platform
from include.platforms.cluster import Size
from include.recipes import resolve
from tests.kubernetes.namespace import JOBS_IMAGE, Namespace, pod, wait_for
from tests.kubernetes.task import Task, adopted, mark_failed, wait

NODES = "anemone/training={}"
TWO = {"processes": 2, "local_batch_size": 16, "nodes": 2}
OVERRIDES = {"finetune.steps": 40, "finetune.validate_every": 20, "finetune.warmup_steps": 4}


@pytest.fixture(scope="module")
def inputs(namespace: Namespace) -> dict[str, str]:
    """URIs of a small base model and of curated rows, made by the jobs that make them."""
    recipe = resolve("demo/0.8M_lora_cpu").plan()

    def made(job: str, config: dict[str, Any], **inputs: str) -> str:
        return Task("inputs", {"job": job, "config": config}, inputs, refresh=False).follow()

    base = made("pretrain", {"seed": 0, "steps": 60})
    rows = made("generate", {"variant": "train", "rows": 600})
    store, name = Store.of(rows)
    manifest = store.manifest(name)
    assert manifest is not None
    source = f"{rows}/attempts/{manifest.attempt}/files/data.jsonl"
    data = made("ingest", {**recipe["ingest"]["config"], "source": source})
    return {"base": base, "data": made("curate", recipe["curate"]["config"], data=data)}


def finetune(size: str = "training", **config: Any) -> dict[str, Any]:
    section = resolve("demo/0.8M_lora_cpu", OVERRIDES).plan()["finetune"]
    return {**section, "config": {**section["config"], **config}, "size": size}


def curve(uri: str) -> list[float]:
    store, name = Store.of(uri)
    return [json.loads(line)["loss"] for line in store.read_bytes(name, "loss.jsonl").splitlines()]


def test_two_nodes_train_as_one_does(
    platform: Platform, namespace: Namespace, inputs: dict[str, str], run: str
) -> None:
    one = Task(f"{run}-one", finetune(**{**TWO, "nodes": 1}), inputs).follow()
    both = Task(run, finetune(**TWO), inputs)
    deferred = both.begin()
    assert isinstance(deferred, TaskDeferred)
    pods = wait_for(lambda: namespace.listed("pod", NODES.format(both.pod)), 60, "pods")
    wait_for(lambda: len(namespace.listed("pod", NODES.format(both.pod))) == 2, 60, "two pods")
    assert pods[0]["metadata"]["ownerReferences"][0]["kind"] == "Job"
    uri = both.resume(deferred)
    assert uri != one
    assert len(curve(uri)) == OVERRIDES["finetune.steps"]
    assert curve(uri) == pytest.approx(curve(one), rel=1e-4)
    until_gone(namespace, both.pod)


def until_gone(namespace: Namespace, name: str) -> None:
    """Until nothing of a training is there any more."""

    def gone() -> bool:
        return not any(namespace.listed(kind, NODES.format(name)) for kind in ("job", "pod", "service"))

    wait_for(gone, 120, f"training {name} to be gone")


def until_it_trains(namespace: Namespace, name: str) -> None:
    """Until node 0 of a training has reported steps: all nodes have come, and catch the signal that ends a pod."""

    def trains() -> bool:
        first = f"{NODES.format(name)},batch.kubernetes.io/job-completion-index=0"
        pods = [found for found in namespace.listed("pod", first) if found["status"]["phase"] == "Running"]
        return any("train step=" in namespace.log(found["metadata"]["name"]) for found in pods)

    wait_for(trains, 300, f"the first steps of training {name}")


def owners(namespace: Namespace, name: str) -> set[str]:
    """The Jobs whose pods there are under a training's name."""
    return {found["metadata"]["ownerReferences"][0]["uid"] for found in namespace.listed("pod", NODES.format(name))}


@pytest.fixture
def training(
    platform: Platform, namespace: Namespace, inputs: dict[str, str], run: str
) -> Iterator[tuple[Task, TaskDeferred]]:
    """A task that has deferred, and whose two nodes train until they are stopped."""
    task = Task(run, finetune(**TWO, steps=20_000, checkpoint_every=100_000), inputs)
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    until_it_trains(namespace, task.pod)
    yield task, deferred
    namespace.delete("job", task.pod, "--now")


def test_marking_a_task_as_failed_deletes_its_training_and_a_cleared_one_waits_for_its_end(
    namespace: Namespace, training: tuple[Task, TaskDeferred]
) -> None:
    task, deferred = training
    first = namespace.uid("job", task.pod)
    assert owners(namespace, task.pod) == {first}
    mark_failed(deferred)
    found = namespace.get("job", task.pod)
    assert found is None or "deletionTimestamp" in found["metadata"]
    again = task.begin()
    assert isinstance(again, TaskDeferred)
    second = namespace.uid("job", task.pod)
    assert second not in (first, None)
    assert first not in owners(namespace, task.pod), "pods of both trainings at the same time"
    mark_failed(again)
    until_gone(namespace, task.pod)


def test_the_next_try_adopts_the_training_of_a_killed_worker(
    platform: Platform, namespace: Namespace, inputs: dict[str, str], run: str
) -> None:
    task, uri = adopted(namespace, "job", run, finetune(**TWO, steps=600), inputs, begun=until_it_trains)
    store, name = Store.of(uri)
    manifest = store.manifest(name)
    assert manifest is not None and manifest.metrics["resumed_from"] == 0
    until_gone(namespace, task.pod)


def test_a_triggerer_that_takes_the_place_of_another_watches_on(
    namespace: Namespace, training: tuple[Task, TaskDeferred]
) -> None:
    """And tells what happens then: a node that is deleted by hand, whose peer only followed."""
    task, deferred = training
    with pytest.raises(TimeoutError):
        wait(deferred, seconds=8)
    assert owners(namespace, task.pod) == {namespace.uid("job", task.pod)}
    second = f"{NODES.format(task.pod)},batch.kubernetes.io/job-completion-index=1"
    (found,) = namespace.listed("pod", second)
    name = found["metadata"]["name"]
    threading.Timer(3, namespace.delete, ("pod", name)).start()
    with pytest.raises(AirflowException, match=f"pod {name} was deleted, by hand or by the cluster") as failed:
        task.resume(deferred)
    assert not isinstance(failed.value, AirflowFailException)
    until_gone(namespace, task.pod)


def test_a_node_whose_network_is_cut_is_the_one_that_is_blamed(
    namespace: Namespace, training: tuple[Task, TaskDeferred]
) -> None:
    task, deferred = training
    (found,) = namespace.listed("pod", f"{NODES.format(task.pod)},batch.kubernetes.io/job-completion-index=1")
    cut_network(namespace, found)
    says = rf"node 1 \({task.pod}-1\) is gone: nothing was heard of it for 60 s"
    with pytest.raises(AirflowException, match=says) as failed:
        task.resume(deferred)
    assert "node 0" not in str(failed.value)
    assert not isinstance(failed.value, AirflowFailException)
    until_gone(namespace, task.pod)


def cut_network(namespace: Namespace, pod: dict[str, Any]) -> None:
    """Take down the interface of a pod, from a container beside its own that has the right to."""
    down = "import fcntl, socket, struct; request = struct.pack('16sH14x', b'eth0', 0)"
    container = {
        "name": "cut",
        "image": JOBS_IMAGE,
        "command": ["python", "-c", f"{down}; fcntl.ioctl(socket.socket(), 0x8914, request)"],  # SIOCSIFFLAGS
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False, "capabilities": {"add": ["NET_ADMIN"]}},
    }
    name, changed = pod["metadata"]["name"], {**pod, "spec": {**pod["spec"], "ephemeralContainers": [container]}}
    where = f"/api/v1/namespaces/{namespace.name}/pods/{name}/ephemeralcontainers"
    namespace.kubectl("replace", "--raw", where, "--filename", "-", stdin=json.dumps(changed))

    def ended() -> bool:
        statuses = (namespace.get("pod", name) or {"status": {}})["status"].get("ephemeralContainerStatuses", ())
        codes = [status["state"]["terminated"]["exitCode"] for status in statuses if "terminated" in status["state"]]
        assert codes in ([], [0]), f"the network of pod {name} could not be cut: {namespace.log(name, 'cut')}"
        return codes == [0]

    wait_for(ended, 60, f"the network of pod {name} to be cut")


@pytest.fixture
def narrow(namespace: Namespace) -> Iterator[None]:
    """A quota of the namespace with room for one pod more."""
    there = [found for found in namespace.listed("pod") if found["status"]["phase"] in ("Pending", "Running")]
    hard = {"pods": str(len(there) + 1)}
    namespace.create(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "narrow"}, "spec": {"hard": hard}}
    )
    wait_for(lambda: (namespace.get("resourcequota", "narrow") or {})["status"].get("used"), 60, "the quota to count")
    yield
    namespace.delete("resourcequota", "narrow")


def test_a_quota_with_room_for_one_of_two_nodes_is_in_the_log_at_once_and_in_the_sentence(
    platform: Platform,
    namespace: Namespace,
    inputs: dict[str, str],
    narrow: None,
    run: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO")
    task = Task(run, finetune(**TWO), inputs, schedule_timeout_seconds=20)
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    refused = f"involvedObject.name={task.pod},reason=FailedCreate"

    def told() -> bool:
        found = namespace.kubectl("get", "events", "--field-selector", refused, "--output", "name")
        return bool(found.strip())

    wait_for(told, 30, "the controller of Jobs to say that it may not create a pod")
    with pytest.raises(TimeoutError):
        wait(deferred, seconds=3)
    log = caplog.text + capsys.readouterr().out
    assert log.count("FailedCreate: Error creating: pods") == 1
    assert "is forbidden: exceeded quota: narrow, requested: pods=1" in log
    says = (
        rf"the namespace's quota does not allow to create all 2 pods of training {task.pod} \(FailedCreate: .*"
        r"exceeded quota: narrow, .*\): wait for others to end, or raise the quota \(1 are there after 20 s\)"
    )
    with pytest.raises(AirflowException, match=says) as failed:
        task.resume(deferred)
    assert "kubectl" not in str(failed.value)
    assert not isinstance(failed.value, AirflowFailException)
    until_gone(namespace, task.pod)


@pytest.fixture
def crowded(platform: Platform, namespace: Namespace, use: Callable[..., None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A size of pods of which a node has room for one, and a pod that comes before it; on whatever node is free."""
    node, cores = max(_free_cores(namespace).items(), key=lambda found: found[1])
    half = f"{round(cores * 600)}m"
    place = {"kubernetes.io/hostname": node}
    size = Size(cpu=half, memory="2Gi", scratch="2Gi", shm="512Mi", node_selector=place)
    use(sizes={**platform.cluster.sizes, "half": size})  # type: ignore[union-attr]
    name = f"{namespace.name}-first"
    namespace.create(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000}
    )
    first = pod("first", JOBS_IMAGE, ["sleep", "600"], priorityClassName=name, nodeSelector=place)
    first["spec"]["containers"][0]["resources"]["requests"]["cpu"] = half
    yield "half", first
    namespace.delete("pod", "first", "--now")
    namespace.delete("priorityclass", name)


def _free_cores(namespace: Namespace) -> dict[str, float]:
    """Node → cores that no pod has asked for."""
    free = {
        node["metadata"]["name"]: _cores(node["status"]["allocatable"]["cpu"])
        for node in namespace.listed("node")
        if not node["spec"].get("unschedulable") and not node["spec"].get("taints")
    }
    for found in json.loads(namespace.kubectl("get", "pod", "--all-namespaces", "--output", "json"))["items"]:
        node = found["spec"].get("nodeName")
        if node in free and found["status"]["phase"] in ("Pending", "Running"):
            for container in found["spec"]["containers"]:
                free[node] -= _cores(container.get("resources", {}).get("requests", {}).get("cpu", "0"))
    return free


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def test_a_preempted_training_saves_and_the_next_try_goes_on_from_there(
    namespace: Namespace, inputs: dict[str, str], crowded: tuple[str, dict[str, Any]], run: str
) -> None:
    size, first = crowded
    task = Task(run, finetune(size, steps=300, checkpoint_every=100_000), inputs)
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    wait_for(lambda: namespace.phase(task.pod) == "Running", 180, "the training's pod")
    wait_for(lambda: "train step=" in namespace.log(task.pod), 180, "its first steps", every=0.3)
    namespace.create(first)
    with pytest.raises(AirflowException, match=f"pod {task.pod} was preempted by a pod of a higher priority"):
        task.resume(deferred)
    namespace.wait_ready("first")
    namespace.delete("pod", "first", "--now")
    uri = task.follow()
    store, name = Store.of(uri)
    manifest = store.manifest(name)
    assert manifest is not None
    assert 0 < manifest.metrics["resumed_from"] < 300
    assert len(curve(uri)) == 300
