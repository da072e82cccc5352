from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from kubernetes.client import ApiClient

from operators.kubernetes.pod_failures import (
    disruption_of,
    ended_by_cluster,
    exit_of,
    overdue,
    startup_failure,
    unschedulable,
)


def pod(phase="Failed", *, state=None, deleted=None, **status):
    """As the API server tells of one: `state` of its container in Kubernetes' words, `deleted` seconds ago."""
    container = {
        "name": "base",
        "image": "registry.example/jobs:1",
        "resources": {"limits": {"memory": "3Gi"}},
    }
    metadata = {"name": "anemone-curate-1", "uid": "u"}
    if deleted is not None:
        metadata["deletionTimestamp"] = (datetime.now(UTC) - timedelta(seconds=deleted)).isoformat()
    if state is not None:
        found = {"name": "base", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status["containerStatuses"] = [found]
    document = {
        "metadata": metadata,
        "spec": {"containers": [container], "nodeName": "gpu-7"},
        "status": {"phase": phase, **status},
    }
    return ApiClient().deserialize(SimpleNamespace(data=json.dumps(document)), "V1Pod")


def ended(code, message=None, reason="Error"):
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def disruption(reason, message=""):
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("found", "says", "again"),
    [
        (pod(state=ended(137, reason="OOMKilled")), r"ran out of memory \(limit 3Gi.*: give its size more", False),
        (
            pod(reason="Evicted", message="The node was low on resource: memory.", state=ended(137)),
            "evicted from its node gpu-7, which ran short .*memory",
            True,
        ),
        (
            pod(reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "4Gi".'),
            "wrote more than it may .*more scratch",
            False,
        ),
        (
            pod(
                reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of containers 4Gi."
            ),
            "wrote more than it may",
            False,
        ),
        (pod(conditions=[disruption("PreemptionByScheduler")], state=ended(143)), "pod of a higher priority", True),
        (pod(conditions=[disruption("EvictionByEvictionAPI")], state=ended(143)), "which is being drained", True),
        (pod(conditions=[disruption("DeletionByPodGC")]), r"lost together with its node \(node gpu-7\)", True),
        (pod(conditions=[disruption("DeletionByTaintManager")]), "which is unreachable or was tainted", True),
        (pod(conditions=[disruption("Other", "for a test")]), r"taken away \(Other: for a test\)", True),
        (pod(reason="NodeLost"), r"lost together with its node \(gpu-7\)", True),
        (pod(reason="Terminated", message="imminent node shutdown", state=ended(143)), "shutting down", True),
        (
            pod(reason="UnexpectedAdmissionError", message="Allocate failed"),
            "node gpu-7 did not take pod .*Allocate",
            True,
        ),
        (pod(reason="OutOfcpu", message="Node didn't have enough"), "did not take pod .*OutOfcpu", True),
        (
            pod(reason="DeadlineExceeded", message="active too long", state=ended(143)),
            "longer than its deadline",
            False,
        ),
        (pod(state=ended(128, "exec: python: not found", "StartError")), "cannot run its command .*python: not", False),
        (pod(deleted=-86_400, state=ended(143)), r"was deleted, by hand or by the cluster \(node gpu-7\)", True),
        (pod("Running", deleted=-86_400, state={"running": {}}), "was deleted, by hand", True),
        (pod(), "failed before its container ran", True),
    ],
)
def test_what_the_cluster_did_is_one_sentence_and_a_verdict(found, says, again):
    failure = ended_by_cluster(found)
    assert failure.retryable is again
    assert re.search(says, str(failure)), str(failure)
    assert "\n" not in str(failure)


@pytest.mark.parametrize("code", [0, 64, 65, 70, 75])
def test_a_job_that_says_why_it_ended_is_believed_even_where_its_pod_was_taken(code):
    found = pod(state=ended(code, "why"), conditions=[disruption("EvictionByEvictionAPI")], deleted=5)
    assert ended_by_cluster(found) is None
    assert exit_of(found) == (code, "why")


def test_a_pod_that_goes_on_was_ended_by_nobody():
    assert ended_by_cluster(pod("Running", state={"running": {}})) is None
    assert exit_of(pod("Running", state={"running": {}})) is None


@pytest.mark.parametrize(
    ("message", "failure_message"),
    [
        ("row 3 is wrong: mend it", "row 3 is wrong: mend it"),
        ("step=1\nerror: row 3 is wrong: mend it\nbye\n", "row 3 is wrong: mend it"),
        ("Traceback\nKeyError: 'x'\n\n", "KeyError: 'x'"),
        ("", None),
        (None, None),
    ],
)
def test_the_last_error_is_the_jobs_or_the_end_of_its_log(message, failure_message):
    assert exit_of(pod(state=ended(70, message))) == (70, failure_message)


@pytest.mark.parametrize(
    ("reason", "message", "says", "again"),
    [
        (
            "ErrImagePull",
            'rpc error: failed to pull "i": not found',
            "image registry.example/jobs:1 cannot be pulled",
            False,
        ),
        ("ImagePullBackOff", "Back-off pulling image: 401 Unauthorized", "image_pull_secrets", False),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: connect: connection refused", "could not be pulled", True),
        ("InvalidImageName", "couldn't parse image name", "cannot be pulled", False),
        ("ErrImageNeverPull", "not present with pull policy of Never", "cannot be pulled", False),
        (
            "CreateContainerConfigError",
            'secret "store" not found',
            'secret "store" not found.*create the Secret',
            False,
        ),
        ("CreateContainerError", "context deadline exceeded", "check its node", True),
    ],
)
def test_what_keeps_a_container_from_starting(reason, message, says, again):
    failure = startup_failure(pod("Pending", state={"waiting": {"reason": reason, "message": message}}))
    assert failure.retryable is again
    assert re.search(says, str(failure)), str(failure)


def test_what_only_takes_its_time_is_no_startup_failure():
    assert startup_failure(pod("Pending", state={"waiting": {"reason": "ContainerCreating"}})) is None
    assert startup_failure(pod("Pending")) is None


def test_the_schedulers_words():
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: no GPU"}
    assert unschedulable(pod("Pending", conditions=[condition])) == "0/1 nodes: no GPU"
    assert unschedulable(pod("Pending", conditions=[{**condition, "status": "True"}])) is None
    assert unschedulable(pod("Pending", conditions=[])) is None


def test_a_node_has_a_minute_to_say_that_a_pod_has_ended():
    assert not overdue(pod("Running", deleted=50))
    assert overdue(pod("Running", deleted=70))
    # Whatever took it away: the next try cannot begin before it is certain that this one has ended.
    assert "--force" in (
        disruption_of(pod("Running", deleted=70, conditions=[disruption("DeletionByTaintManager")])) or ""
    )
    assert not overdue(pod("Running"))
    assert "its node gpu-7 does not answer" in disruption_of(pod("Running", deleted=70))
