"""Each line of a pod's log once, whoever reads it, in whatever pieces it comes."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from operators.kubernetes.pod_logs import LogReader
from operators.kubernetes.pod_trigger import PodJobTrigger
from operators.kubernetes.training_trigger import TrainingTrigger
from tests.operators.kubernetes.airflow_api import TI, AirflowPeer
from tests.operators.kubernetes.api import KubernetesPeer, TrainingPeer

POD = SimpleNamespace(metadata=SimpleNamespace(uid="u-1", namespace="anemone", name="p"))
STAMPS = [f"2026-03-01T00:00:0{second}.{part:09d}Z" for second, part in ((1, 5), (1, 10), (1, 10), (2, 0), (3, 7))]
LOG = [f"{stamp} line {number}" for number, stamp in enumerate(STAMPS)]


def read(reader, text, *, step=7, ended=False, pod=POD):
    """All that a reading gives, whose response comes in pieces of `step` bytes."""
    asked = reader.request(pod, "base")
    data = text.encode()
    found = [line for at in range(0, len(data), step) for line in reader.take(data[at : at + step])]
    return dict(asked["query_params"]), found + (list(reader.finish()) if ended else [])


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("step", [1, 13, 4096])
def test_another_reader_goes_on_where_one_has_stopped(cut, step):
    first = LogReader()
    asked, begin = read(first, "".join(f"{line}\n" for line in LOG[:cut]), step=step)
    assert "sinceTime" not in asked
    second = LogReader(json.loads(json.dumps(first.position)))
    asked, rest = read(second, "".join(f"{line}\n" for line in LOG), step=step)
    assert begin + rest == [f"line {number}" for number in range(5)]
    assert asked["sinceTime"] == f"{STAMPS[cut - 1][:19]}Z"
    assert read(second, "".join(f"{line}\n" for line in LOG[3:]))[1] == []


def test_lines_that_two_streams_wrote_out_of_order_are_all_there():
    text = "2026-03-01T00:00:01.2Z a\n2026-03-01T00:00:01.1Z b\n2026-03-01T00:00:01.3Z c\n"
    reader = LogReader()
    assert read(reader, text)[1] == ["a", "b", "c"]
    assert read(reader, text + "2026-03-01T00:00:01.4Z d\n")[1] == ["d"]


def test_a_clock_that_is_put_back_an_hour_loses_nothing():
    """Runtimes write the node's own zone."""
    reader = LogReader()
    assert read(reader, "2026-10-25T02:59:59.5+02:00 a\n")[1] == ["a"]
    asked, found = read(reader, "2026-10-25T02:59:59.5+02:00 a\n2026-10-25T02:00:00.5+01:00 b\n")
    assert found == ["b"]
    assert asked["sinceTime"] == "2026-10-25T00:59:59Z"


def test_a_line_is_what_ends_with_a_newline():
    """A progress bar's carriage returns, and a separator of Unicode's, are within one."""
    reader = LogReader()
    assert read(reader, "2026-03-01T00:00:01Z 10%\r20%\u2028x\n2026-03-01T00:00:02Z half")[1] == ["10%\r20%\u2028x"]
    assert read(reader, "2026-03-01T00:00:02Z half a line", ended=True)[1] == ["half a line"]


def test_what_kubelet_says_of_a_log_that_it_cannot_read_is_no_line_of_it():
    assert read(LogReader(), "unable to retrieve container logs for containerd://0123", ended=True)[1] == []


def test_the_log_of_another_pod_begins_at_its_begin():
    reader = LogReader()
    read(reader, f"{LOG[4]}\n")
    other = SimpleNamespace(metadata=SimpleNamespace(uid="u-2", namespace="anemone", name="p"))
    asked, found = read(reader, f"{LOG[0]}\n", pod=other)
    assert found == ["line 0"] and "sinceTime" not in asked


def test_a_line_without_an_end_takes_no_more_than_its_share_of_memory():
    reader = LogReader()
    reader.request(POD, "base")
    list(reader.take(b"2026-03-01T00:00:01Z "))
    for _ in range(40):
        assert list(reader.take(b"x" * 2**17)) == []
    (line,) = reader.take(b"\n")
    assert 2**19 < len(line) <= 2**20


@pytest.fixture
def airflow(monkeypatch):
    return AirflowPeer(monkeypatch)


def of_a_pod(peer: KubernetesPeer):
    """A running pod, and what makes a trigger that watches it."""
    container = {"name": "base", "image": "i"}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 5}
    peer._create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "anemone"}, "spec": spec})
    arguments = {
        "pod_name": "p", "pod_namespace": "anemone", "base_container_name": "base", "poll_interval": 0.02,
        "trigger_start_time": None, "kubernetes_conn_id": "kubernetes_default", "logging_interval": 0.03,
        "startup_check_interval": 0.02, "log_events_on_startup": False,
    }  # fmt: skip
    return peer.pods["p"], lambda: PodJobTrigger(**arguments)


def of_a_training(peer: TrainingPeer):
    """Node 0 of a running training, and what makes a trigger that watches it."""
    template = {"metadata": {"labels": {"anemone/training": "p"}}}
    template["spec"] = {"containers": [{"name": "base", "image": "i"}], "terminationGracePeriodSeconds": 5}
    peer._make_job({"metadata": {"name": "p"}, "spec": {"completions": 2, "template": template}})
    arguments = {
        "name": "p", "namespace": "anemone", "workload": "job", "nodes": 2, "spec": "s",
        "connection": "kubernetes_default",
        "in_cluster": None, "since": "2026-01-01T00:00:00+00:00", "poll_seconds": 0.02, "unreachable_seconds": 1,
        "schedule_timeout_seconds": 1e9, "startup_timeout_seconds": 1e9,
    }  # fmt: skip
    return peer.pods["p-0"], lambda: TrainingTrigger(**arguments)


@pytest.mark.parametrize("watched", [of_a_pod, of_a_training])
@pytest.mark.parametrize("forgets", [False, True])
def test_a_replaced_triggerer_goes_on_in_the_log(kubernetes, airflow, watched, forgets, capsys, caplog):
    """Where Airflow cannot say how far the one before had come, the log is there twice, and the task unharmed."""
    caplog.set_level("INFO")
    pod, trigger = watched(kubernetes)
    name = pod["metadata"]["name"]
    output = [""]

    def heard(word):
        output[0] += capsys.readouterr().out
        return (output[0] + caplog.text).count(word)

    async def watches_until(word):
        one = trigger()
        one.task_instance = TI
        running = asyncio.create_task(anext(one.run()))
        for _ in range(1500):
            if heard(word) or running.done():
                break
            await asyncio.sleep(0.02)
        assert not running.done(), running.result()
        running.cancel()

    kubernetes.status(pod, "Running", state={"running": {}})
    kubernetes.logs[name] = "step-1\nstep-2\n"
    asyncio.run(watches_until("step-2"))
    if forgets:
        airflow.away = RuntimeError("the API server is away")
    kubernetes.logs[name] += "step-3\n"
    asyncio.run(watches_until("step-3"))
    again = 2 if forgets else 1
    assert [heard(f"step-{number}") for number in (1, 2, 3)] == [again, again, 1]
