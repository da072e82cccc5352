"""Trainings of several nodes with real clients and a real trigger, against a small Kubernetes API.

What the pods themselves do to each other is shown in tests/jobs/finetune/test_node_group.py.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from operators import DistributedJobOperator
from operators.kubernetes import pod_trigger, training_operator, training_trigger
from operators.kubernetes.training_trigger import TrainingTrigger
from operators.kubernetes.workloads import TRAINING
from tests.operators.kubernetes.airflow_api import task_context
from tests.operators.kubernetes.api import USER, now


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Poll and resume without pauses."""
    monkeypatch.setattr(training_operator, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(training_trigger, "_LEAST_SECONDS", 0.0)


@pytest.fixture
def platform(platform, monkeypatch):
    limits = {"unreachable_seconds": 1, "schedule_timeout_seconds": 30, "startup_timeout_seconds": 30}
    found = platform.model_copy(update={"cluster": platform.cluster.model_copy(update=limits)})
    monkeypatch.setattr("operators.job.current_platform", lambda: found)
    return found


@pytest.fixture
def task(platform, kubernetes, store, commit):
    for name in ("base", "data"):
        commit(name, {"a": "1"})
    inputs = {name: store.uri(name) for name in ("base", "data")}

    def make(nodes=2, **kwargs):
        config = {"steps": 10, "learning_rate": 0.1, "max_tokens": 64, "chat_template": "x", "local_batch_size": 4}
        section = {"job": "finetune", "config": {**config, "processes": 4, "nodes": nodes}}
        arguments = {"task_id": "finetune", "section": section, "inputs": inputs, "poll_interval": 0.02, **kwargs}
        return DistributedJobOperator(**arguments)

    return make


def context(try_number=1):
    return task_context("finetune", try_number=try_number, recipe="demo/x")


def deferred(operator, given=None):
    with pytest.raises(TaskDeferred) as waiting:
        operator.execute(given or context())
    assert waiting.value.method_name == "training_ended"
    return waiting.value.trigger


def fires(trigger):
    """What the trigger tells, after the way through Airflow's database."""
    path, arguments = trigger.serialize()
    assert path == "operators.kubernetes.training_trigger.TrainingTrigger"
    arguments = json.loads(json.dumps(arguments))
    return asyncio.run(
        asyncio.wait_for(training_trigger.first_event(training_trigger.TrainingTrigger(**arguments)), 30)
    )


def follow(task, given=None, **kwargs):
    """To the end; each step is another process, and so another operator."""
    given = given or context()
    event = fires(deferred(task(**kwargs), given))
    return task(**kwargs).training_ended(given, event)


def test_what_is_no_section_of_a_recipe_ends_the_task_with_what_to_do(task, kubernetes):
    with pytest.raises(AirflowFailException, match=r"no stage's section \(job: Field required\).*the resolved recipe"):
        task(section={"config": {"nodes": 2}}).execute(context())


def test_two_nodes_are_one_training_and_its_task_returns_the_artifact(task, kubernetes, store, commit, caplog, capsys):
    def run(job):
        plan = json.loads(store_text(store, job))
        commit(plan["output"]["name"], {"adapter/a": "1"}, job="finetune", metrics={"steps": 10})
        first, second = kubernetes.nodes(job)
        kubernetes.logs[first["metadata"]["name"]] = "train step=10\nfinished\n"
        kubernetes.logs[second["metadata"]["name"]] = "took_part node=1\n"
        for pod in (first, second):
            kubernetes.exit(pod, 0)
        kubernetes.end(job)

    kubernetes.on_job = run
    caplog.set_level("INFO")
    given = context()
    uri = follow(task, given)
    assert given["ti"].xcom["return_value"] == uri
    assert kubernetes.jobs == kubernetes.pods == kubernetes.services == {}
    log = caplog.text + capsys.readouterr().out
    assert "train step=10" in log and "took_part" not in log


def store_text(store, job):
    uri = job["metadata"]["annotations"]["anemone/spec"]
    return Path(uri.removeprefix("file://")).read_text()


def test_a_job_of_one_node_is_a_pod(task, kubernetes):
    with pytest.raises(TaskDeferred) as waiting:
        task(nodes=1).execute(context())
    assert waiting.value.method_name == "trigger_reentry"
    assert kubernetes.jobs == {} and len(kubernetes.pods) == 1


def test_the_service_belongs_to_the_job(task, kubernetes):
    deferred(task())
    ((name, job),) = kubernetes.jobs.items()
    (service,) = kubernetes.services.values()
    assert service["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
    ]
    assert job["metadata"]["labels"][TRAINING] == name


@pytest.mark.parametrize("ended", [False, True])
def test_the_next_try_adopts_what_a_crash_has_left(task, kubernetes, store, commit, ended):
    deferred(task())
    (job,) = kubernetes.jobs.values()
    if ended:
        commit(json.loads(store_text(store, job))["output"]["name"], {"a": "1"}, job="finetune")
        kubernetes.end(job)
    trigger = deferred(task(), context(try_number=2)) if not ended else None
    assert [found["metadata"]["uid"] for found in kubernetes.jobs.values()] == [job["metadata"]["uid"]]
    assert trigger is None or trigger.name == job["metadata"]["name"]


def test_a_service_that_a_crash_left_unmade_is_made_when_the_training_is_adopted(task, kubernetes):
    deferred(task())
    kubernetes.services.clear()
    deferred(task(), context(try_number=2))
    assert len(kubernetes.services) == 1


def test_one_that_has_failed_and_one_of_another_spec_make_room(task, kubernetes):
    deferred(task())
    (job,) = kubernetes.jobs.values()
    kubernetes.end(job, "Failed")
    deferred(task(), context(try_number=2))
    (again,) = kubernetes.jobs.values()
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    other = task()
    other.section["config"]["steps"] = 20
    deferred(other, context(try_number=3))
    (third,) = kubernetes.jobs.values()
    assert third["metadata"]["uid"] != again["metadata"]["uid"]


def test_one_that_is_being_deleted_is_waited_for(task, kubernetes, monkeypatch):
    deferred(task())
    (job,) = kubernetes.jobs.values()
    job["metadata"]["deletionTimestamp"] = now()
    left = []

    def wait(_seconds):
        left.append(len(kubernetes.jobs))
        if len(left) == 3:
            kubernetes._delete_job(job["metadata"]["name"])

    monkeypatch.setattr(training_operator.time, "sleep", wait)
    deferred(task(), context(try_number=2))
    assert left == [1, 1, 1]
    assert [found["metadata"]["uid"] for found in kubernetes.jobs.values()] != [job["metadata"]["uid"]]


def test_where_the_service_is_refused_no_pods_stay(task, kubernetes):
    def refuse(_job):
        kubernetes.refusal = (403, 'services is forbidden: User "airflow" cannot create resource "services"')

    kubernetes.on_job = refuse
    with pytest.raises(AirflowFailException, match="may not create Service"):
        task().execute(context())
    assert kubernetes.jobs == kubernetes.pods == {}


@pytest.mark.parametrize(
    ("ends", "error", "says"),
    [
        ([(75, "node 1 is gone", 9), (65, "row 3 is broken", 3)], AirflowFailException, "row 3 is broken"),
        ([(143, "stopped", 0), (70, "training diverged", 5)], AirflowFailException, "training diverged"),
        ([(75, "rank 1 was killed", 1), (75, "rank 1 was killed", 1)], AirflowException, "rank 1 was killed"),
        ([(143, "stopped on request", 1), (143, "stopped on request", 2)], AirflowException, "was deleted|stopped on"),
    ],
)
def test_the_first_failure_that_says_why_is_the_verdict(task, kubernetes, capsys, caplog, ends, error, says):
    def fail(job):
        for pod, (code, words, seconds) in zip(kubernetes.nodes(job), ends, strict=True):
            kubernetes.logs[pod["metadata"]["name"]] = f"the end of {pod['metadata']['name']}\n"
            kubernetes.exit(pod, code, words, seconds)
        kubernetes.end(job, "Failed", "PodFailurePolicy")

    kubernetes.on_job = fail
    with pytest.raises(error, match=says) as raised:
        follow(task)
    assert type(raised.value) is error
    log = caplog.text + capsys.readouterr().out
    assert log.count("the end of anemone-finetune-") >= 2
    assert kubernetes.jobs == {}


def test_a_pod_that_ran_out_of_memory_is_the_verdict_and_not_the_peer_that_missed_it(task, kubernetes):
    def fail(job):
        first, second = kubernetes.nodes(job)
        kubernetes.exit(first, 75, "node 1 is gone", 40)
        kubernetes.exit(second, 137, "", 10)
        second["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] = "OOMKilled"
        kubernetes.end(job, "Failed", "PodFailurePolicy")

    kubernetes.on_job = fail
    with pytest.raises(AirflowException, match="-1 ran out of memory"):
        follow(task)


def test_a_pod_that_was_preempted_is_the_verdict(task, kubernetes):
    def fail(job):
        first, second = kubernetes.nodes(job)
        kubernetes.exit(first, 143, "stopped", 1)
        kubernetes.exit(second, 143, "stopped", 2)
        second["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        ]
        kubernetes.end(job, "Failed", "PodFailurePolicy")

    kubernetes.on_job = fail
    with pytest.raises(AirflowException, match="-1 was preempted by a pod of a higher priority"):
        follow(task)


def test_a_training_that_is_gone_is_no_success(task, kubernetes):
    trigger = deferred(task())
    kubernetes._delete_job(trigger.name)
    event = fires(trigger)
    assert event["status"] == "gone"
    with pytest.raises(AirflowException, match="is gone"):
        task().training_ended(context(), event)


def test_an_event_of_version_0_1_is_understood(task, kubernetes):
    trigger = deferred(task())
    kubernetes._delete_job(trigger.name)
    event = {"status": "gone", "message": None, "retryable": True, "spec": trigger.spec, "uid": trigger.uid}
    with pytest.raises(AirflowException, match="pod x was preempted"):
        task().training_ended(context(), {**event, "fate": "pod x was preempted"})
    with pytest.raises(AirflowException, match="is gone, and nobody saw it end"):
        task().training_ended(context(), {**event, "fate": None})


def test_where_one_pod_finds_no_node_all_are_let_go(task, kubernetes):
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    first, second = kubernetes.nodes(job)
    first["spec"]["nodeName"] = "gpu-1"
    kubernetes.status(first, "Running", state={"running": {"startedAt": now()}})
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient gpu"}
    kubernetes.status(second, "Pending", conditions=[waits])
    second["metadata"]["creationTimestamp"] = now(-31)
    event = fires(trigger)
    assert event["status"] == "stuck"
    with pytest.raises(
        AirflowException, match=r"-1 within 30 s \(Insufficient gpu\).* needs all of them: \S+-0 had one and"
    ):
        task().training_ended(context(), event)
    assert kubernetes.jobs == kubernetes.pods == {}


def test_where_no_pod_finds_a_node_nothing_is_said_of_others(task, kubernetes):
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    for pod in kubernetes.nodes(job):
        waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient gpu"}
        kubernetes.status(pod, "Pending", conditions=[waits])
        pod["metadata"]["creationTimestamp"] = now(-31)
    assert fires(trigger)["message"].endswith("needs all of them: add nodes, free some, or lower finetune.nodes")


def long_ago(trigger):
    trigger.since = (datetime.now(UTC) - timedelta(seconds=31)).isoformat()
    return trigger


PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


@pytest.mark.parametrize(
    ("conditions", "says"),
    [([], "has 1 of its 2 pods after 30 s"), ([PREEMPTED], "-0 was preempted by a pod of a higher priority")],
)
def test_pods_that_are_never_made_end_the_wait(task, kubernetes, conditions, says):
    """Where one that was there was taken away, that is the reason."""

    def refuse_second(job):
        first, second = kubernetes.nodes(job)
        kubernetes.vanish(second["metadata"]["name"])
        kubernetes.status(first, "Running", state={"running": {}}, conditions=conditions)

    kubernetes.on_job = refuse_second
    event = fires(long_ago(deferred(task())))
    with pytest.raises(AirflowException, match=says):
        task().training_ended(context(), event)


async def polls(kubernetes, trigger):
    """Wait until the trigger has looked twice from now on: once with what the API says now."""

    def looked():
        return sum(request.endswith(f"s/{trigger.name}") for request in kubernetes.requests)

    until = looked() + 3
    while looked() < until:
        await asyncio.sleep(0.01)


FULL = 'Error creating: pods "{}" is forbidden: exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4'


def refuse_pods(kubernetes, reporter="{}", message=FULL, seconds=0, tries=3):
    """What a controller does where admission refuses its pods: it makes none, tries again, and says so each time."""

    def refuse(training):
        name = training["metadata"]["name"]
        for number in range(training["spec"].get("completions", 0)):
            kubernetes.vanish(f"{name}-{number}")
        for number in range(tries):
            refused = "(combined from similar events): " * (number == 2) + message.format(f"{name}-0-{number}")
            kubernetes.warn(reporter.format(name), "FailedCreate", refused, seconds + number)

    return refuse


@pytest.mark.parametrize(("form", "reporter"), [("job", "{}"), ("trainjob", "{}-node-0")])
def test_a_full_quota_is_in_the_log_at_once_and_in_the_sentence(
    task, kubernetes, request, caplog, capsys, form, reporter
):
    if form == "trainjob":
        request.getfixturevalue("as_trainjob")
    kubernetes.on_job = refuse_pods(kubernetes, reporter)
    trigger = deferred(task())
    if form == "trainjob":
        kubernetes.on_job(kubernetes.kubeflow["trainjobs"][trigger.name])

    async def waits():
        event = asyncio.create_task(training_trigger.first_event(trigger))
        await polls(kubernetes, trigger)
        assert not event.done()
        event.cancel()

    asyncio.run(asyncio.wait_for(waits(), 30))
    assert (caplog.text + capsys.readouterr().out).count("FailedCreate: Error creating") == 1
    event = fires(long_ago(trigger))
    quota = (
        r"quota does not allow to create all 2 pods .*FailedCreate: .*exceeded quota: team,.*: wait for others to end"
    )
    with pytest.raises(AirflowException, match=quota) as raised:
        task().training_ended(context(), event)
    assert "(0 are there after 30 s)" in str(raised.value) and "kubectl" not in str(raised.value)
    assert not isinstance(raised.value, AirflowFailException)


def test_a_node_that_waits_for_another_is_not_said_to_have_ended(task, kubernetes, caplog, capsys):
    def refuse_second(job):
        first, second = kubernetes.nodes(job)
        kubernetes.status(first, "Running", state={"running": {"startedAt": now()}})
        kubernetes.vanish(second["metadata"]["name"])
        kubernetes.warn(job["metadata"]["name"], "FailedCreate", FULL.format(second["metadata"]["name"]))

    kubernetes.on_job = refuse_second
    caplog.set_level("INFO")
    event = fires(long_ago(deferred(task())))
    with pytest.raises(AirflowException, match="1 are there after 30 s"):
        task().training_ended(context(), event)
    log = caplog.text + capsys.readouterr().out
    assert "-0 had not ended (Running, node " in log and "the end of pod" not in log


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (FULL.replace("limited: pods=4", "limited: pods=1"), "quota can never allow to create all 2 pods"),
        ('Error creating: pods "{}" is forbidden: violates PodSecurity "restricted:latest"', "Pod Security refuses"),
        ('Error creating: pods "{}" is forbidden: serviceaccount "jobs" not found', "create the service account"),
    ],
)
def test_a_training_whose_pods_can_never_be_made_ends_soon_and_for_good(task, kubernetes, monkeypatch, message, says):
    monkeypatch.setattr(training_trigger, "STARTUP_FAILURE_SECONDS", 0.05)
    kubernetes.on_job = refuse_pods(kubernetes, message=message)
    event = fires(deferred(task()))
    with pytest.raises(AirflowFailException, match=says):
        task().training_ended(context(), event)


def test_a_refusal_that_was_not_repeated_may_have_been_corrected(task, kubernetes, monkeypatch):
    monkeypatch.setattr(training_trigger, "STARTUP_FAILURE_SECONDS", 0.05)
    never = FULL.replace("limited: pods=4", "limited: pods=1")
    kubernetes.on_job = refuse_pods(kubernetes, message=never, tries=1)
    trigger = deferred(task())

    async def waits():
        event = asyncio.create_task(training_trigger.first_event(trigger))
        for _ in range(3):
            await polls(kubernetes, trigger)
        assert not event.done()
        event.cancel()

    asyncio.run(asyncio.wait_for(waits(), 30))


def test_a_training_that_may_not_be_watched_names_the_role(task, kubernetes):
    trigger = deferred(task())
    kubernetes.answers["GET"] = (403, f'jobs.batch is forbidden: User "{USER}" cannot get resource "jobs"')
    event = fires(trigger)
    kubernetes.answers.clear()
    with pytest.raises(AirflowException, match=r"Airflow may not watch training .*give its service account the Role"):
        task().training_ended(context(), event)


@pytest.mark.remedy("raise the quota, or lower finetune.nodes", "add nodes, free some, or lower finetune.nodes")
def test_with_fewer_nodes_there_is_nothing_to_wait_for(task, kubernetes, monkeypatch):
    monkeypatch.setattr(training_trigger, "STARTUP_FAILURE_SECONDS", 0.05)
    kubernetes.on_job = refuse_pods(kubernetes, message=FULL.replace("limited: pods=4", "limited: pods=1"))
    event = fires(deferred(task()))
    with pytest.raises(AirflowFailException, match=r"raise the quota, or lower finetune\.nodes"):
        task().training_ended(context(), event)
    with pytest.raises(TaskDeferred):
        task(nodes=1).execute(context(try_number=2))
    assert kubernetes.jobs == {} and len(kubernetes.pods) == 1


def test_a_reason_that_is_not_known_is_told_as_it_is(task, kubernetes):
    kubernetes.on_job = refuse_pods(kubernetes, message="the pod {} did not please me")
    event = fires(long_ago(deferred(task())))
    assert (
        "has 0 of its 2 pods after 30 s: what keeps the others from being created is FailedCreate: the pod"
        in event["message"]
    )


def test_what_was_said_of_the_last_tries_training_is_not_said_of_this_one(task, kubernetes):
    kubernetes.on_job = refuse_pods(kubernetes, seconds=-60)
    event = fires(long_ago(deferred(task())))
    assert (
        "no event says what keeps the others from being created; see that the controller of jobs runs"
        in event["message"]
    )


def test_without_the_right_to_list_events_a_training_runs_on(task, kubernetes, caplog, capsys):
    kubernetes.on_job = refuse_pods(kubernetes)
    kubernetes.answers["events"] = (403, f'events is forbidden: User "{USER}" cannot list resource "events"')
    event = fires(long_ago(deferred(task())))
    assert "has 0 of its 2 pods" in event["message"]
    log = caplog.text + capsys.readouterr().out
    assert log.count("Airflow may not list the events") == 1 and "give its service account the Role" in log


def test_a_pod_that_is_taken_away_after_hours_was_made(task, kubernetes):
    trigger = long_ago(deferred(task()))
    (job,) = kubernetes.jobs.values()
    first, second = kubernetes.nodes(job)
    for pod in (first, second):
        kubernetes.status(pod, "Running", state={"running": {"startedAt": now()}})

    async def preempted():
        event = asyncio.create_task(training_trigger.first_event(trigger))
        await polls(kubernetes, trigger)
        kubernetes.status(second, "Running", state={"running": {}}, conditions=[PREEMPTED])
        await polls(kubernetes, trigger)
        kubernetes.vanish(second["metadata"]["name"])
        await polls(kubernetes, trigger)
        assert not event.done()
        kubernetes.exit(first, 143, "stopped on request")
        kubernetes.end(job, "Failed", "PodFailurePolicy")
        return await event

    event = asyncio.run(asyncio.wait_for(preempted(), 30))
    assert event["status"] == "failed"
    with pytest.raises(AirflowException, match="-1 was preempted by a pod of a higher priority"):
        task().training_ended(context(), event)


@pytest.mark.parametrize(
    ("code", "words", "error", "says"),
    [
        (75, "node 1 is gone", AirflowException, "-1 should have ended by .* its node gpu-7 does not answer.*--force"),
        (65, "row 3 is broken", AirflowFailException, "row 3 is broken"),
    ],
)
def test_a_pod_that_never_ends_does_not_keep_the_others_waiting(task, kubernetes, code, words, error, says):
    """Since Kubernetes 1.31 a Job fails only once all its pods have ended; until then it says FailureTarget."""
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    first, second = kubernetes.nodes(job)
    kubernetes.exit(first, code, words)
    kubernetes.status(second, "Running", state={"running": {"startedAt": now()}})
    second["spec"]["nodeName"] = "gpu-7"
    second["metadata"]["deletionTimestamp"] = now(-300)
    kubernetes.end(job, "FailureTarget", "PodFailurePolicy")
    event = fires(trigger)
    with pytest.raises(AirflowException, match=says) as raised:
        task().training_ended(context(), event)
    assert type(raised.value) is error


@pytest.mark.parametrize(("try_number", "left"), [(1, 1), (5, 0)])
def test_one_whose_making_got_no_answer_is_adopted_and_goes_with_the_last_try(task, kubernetes, try_number, left):
    kubernetes.losing = 1
    with pytest.raises(AirflowException, match="could not create training"):
        task().execute(context(try_number))
    assert len(kubernetes.jobs) == left


@pytest.mark.parametrize("form", ["job", "trainjob"])
def test_another_training_of_its_name_is_left_alone(task, kubernetes, request, form):
    if form == "trainjob":
        request.getfixturevalue("as_trainjob")
    operator = task()
    trigger = deferred(operator)
    kept = kubernetes.jobs if form == "job" else kubernetes.kubeflow["trainjobs"]
    (training,) = kept.values()
    training["metadata"]["uid"] = "another"
    asyncio.run(TrainingTrigger(**trigger.serialize()[1]).on_kill())
    operator.on_kill()
    event = {
        "status": "unreachable",
        "message": "no answer",
        "disruption": None,
        "spec": trigger.spec,
        "uid": trigger.uid,
    }
    with pytest.raises(AirflowException, match="no answer"):
        task().training_ended(context(try_number=5), event)
    assert list(kept.values()) == [training]


@pytest.mark.parametrize(("away", "left"), [(9, 0), (10_000, 1)])
def test_marking_the_task_while_the_api_is_away(task, kubernetes, monkeypatch, caplog, capsys, away, left):
    monkeypatch.setattr(pod_trigger, "_KILL_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(pod_trigger, "_KILL_SECONDS", 5 if left == 0 else 0.3)
    trigger = deferred(task())
    kubernetes.failing = away
    asyncio.run(TrainingTrigger(**trigger.serialize()[1]).on_kill())
    assert len(kubernetes.jobs) == left
    log = caplog.text + capsys.readouterr().out
    assert (f"`kubectl --namespace anemone delete jobs {trigger.name}`" in log) is bool(left)


def test_an_image_that_cannot_be_had_ends_the_wait(task, kubernetes, monkeypatch):
    monkeypatch.setattr(training_trigger, "STARTUP_FAILURE_SECONDS", 0.05)
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    for pod in kubernetes.nodes(job):
        waiting = {"reason": "ErrImagePull", "message": "manifest unknown"}
        kubernetes.status(pod, "Pending", state={"waiting": waiting})
    event = fires(trigger)
    assert (event["status"], event["retryable"]) == ("stuck", False)
    with pytest.raises(AirflowFailException, match="cannot be pulled"):
        task().training_ended(context(), event)


@pytest.mark.parametrize(("try_number", "left"), [(1, 1), (5, 0)])
def test_one_that_could_not_be_watched_goes_on_for_the_next_try(task, kubernetes, try_number, left):
    trigger = deferred(task())
    spec = trigger.serialize()[1]["spec"]
    event = {"status": "unreachable", "message": "no answer", "disruption": None, "spec": spec, "uid": trigger.uid}
    with pytest.raises(AirflowException, match="no answer"):
        task().training_ended(context(try_number=try_number), event)
    assert len(kubernetes.jobs) == left


def test_one_whose_spec_is_gone_makes_room(task, kubernetes, store):
    deferred(task())
    (job,) = kubernetes.jobs.values()
    Path(job["metadata"]["annotations"]["anemone/spec"].removeprefix("file://")).unlink()
    deferred(task(), context(try_number=2))
    (again,) = kubernetes.jobs.values()
    assert again["metadata"]["uid"] != job["metadata"]["uid"]


def test_the_trigger_outlasts_an_api_server_that_is_replaced(task, kubernetes):
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    kubernetes.failing = 3
    kubernetes.end(job, "Failed")
    assert fires(trigger)["status"] == "failed"


def test_marking_the_task_deletes_the_training_and_the_next_one_is_another(task, kubernetes):
    trigger = deferred(task())
    (first,) = kubernetes.jobs.values()
    asyncio.run(TrainingTrigger(**trigger.serialize()[1]).on_kill())
    assert kubernetes.jobs == {} and kubernetes.pods == {}
    deferred(task(), context(try_number=2))
    (second,) = kubernetes.jobs.values()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert any(request.startswith("DELETE ") and "/jobs/" in request for request in kubernetes.requests)


def test_killing_the_process_deletes_the_training(task, kubernetes):
    operator = task()
    deferred(operator)
    operator.on_kill()
    assert kubernetes.jobs == {}


def test_a_task_that_waits_by_itself_comes_to_the_same_end(task, kubernetes, store, commit):
    def run(job):
        commit(json.loads(store_text(store, job))["output"]["name"], {"a": "1"}, job="finetune")
        kubernetes.end(job)

    kubernetes.on_job = run
    uri = task(deferrable=False).execute(context())
    assert uri.startswith(f"{store.root}/finetune-")


def test_what_a_crash_left_after_the_commit_is_taken_away(task, kubernetes, store, commit):
    deferred(task())
    (job,) = kubernetes.jobs.values()
    commit(json.loads(store_text(store, job))["output"]["name"], {"a": "1"}, job="finetune")
    assert task().execute(context(try_number=2)).startswith(f"{store.root}/finetune-")
    assert kubernetes.jobs == kubernetes.pods == kubernetes.services == {}


@pytest.fixture
def as_trainjob(platform, monkeypatch):
    cluster = platform.cluster.model_copy(update={"training": "trainjob"})
    monkeypatch.setattr("operators.job.current_platform", lambda: platform.model_copy(update={"cluster": cluster}))


def test_a_trainjob_owns_the_runtime_that_was_made_for_it(task, kubernetes, as_trainjob):
    name = deferred(task()).name
    found = {kind: objects[name] for kind, objects in kubernetes.kubeflow.items()}
    (owner,) = found["trainingruntimes"]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("TrainJob", found["trainjobs"]["metadata"]["uid"])


def test_where_the_trainjob_is_refused_its_runtime_goes(task, kubernetes, as_trainjob):
    kubernetes.refusals["trainjobs"] = (400, 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied it')
    with pytest.raises(AirflowFailException, match="a policy of the cluster refuses to create training"):
        task().execute(context())
    assert any(request.startswith("POST ") and "trainingruntimes" in request for request in kubernetes.requests)
    assert kubernetes.kubeflow == {"trainjobs": {}, "trainingruntimes": {}}


def test_a_training_and_its_pods_say_whose_they_are(task, kubernetes, platform, monkeypatch):
    cluster = platform.cluster.model_copy(update={"labels": {"cost-centre": "ml-platform"}})
    monkeypatch.setattr("operators.job.current_platform", lambda: platform.model_copy(update={"cluster": cluster}))
    deferred(task(), context(try_number=3))
    (job,) = kubernetes.jobs.values()
    mine = ("dag_id", "task_id", "run_id", "try_number", "anemone/recipe", "cost-centre")
    for found in (job, *kubernetes.nodes(job), *kubernetes.services.values()):
        assert [found["metadata"]["labels"][key] for key in mine] == [
            "customize", "finetune", "manual__1", "3", "demo.x", "ml-platform",
        ]  # fmt: skip


def test_no_credentials_lie_in_the_triggers_queue(task, kubernetes):
    config = kubernetes.kubeconfig.read_text()
    assert "planted-kubernetes-token" in config
    queued = json.dumps(deferred(task()).serialize())
    assert "planted-kubernetes-token" not in queued and "kube_config" not in queued


def test_a_pod_that_was_deleted_by_hand_is_the_verdict_and_not_those_that_followed(task, kubernetes):
    trigger = deferred(task())
    (job,) = kubernetes.jobs.values()
    first, second = kubernetes.nodes(job)
    for pod in (first, second):
        kubernetes.status(pod, "Running", state={"running": {"startedAt": now()}})
    # As the API server tells it: the one that a person deleted, then those that the Job's controller let go.
    second["metadata"]["deletionTimestamp"], first["metadata"]["deletionTimestamp"] = now(30), now(40)

    async def deleted():
        event = asyncio.create_task(training_trigger.first_event(trigger))
        await asyncio.sleep(0.5)
        kubernetes.exit(first, 143, "stopped on request", 2)
        kubernetes.vanish(second["metadata"]["name"])
        kubernetes.end(job, "Failed", "PodFailurePolicy")
        return await event

    with pytest.raises(AirflowException, match=f"pod {second['metadata']['name']} was deleted, by hand"):
        task().training_ended(context(), asyncio.run(asyncio.wait_for(deleted(), 30)))


def test_when_the_tasks_time_is_up_its_training_is_stopped(task, kubernetes):
    deferred(task(execution_timeout=timedelta(hours=1)))
    with pytest.raises(
        AirflowException, match=r"time \(execution_timeout\) was up, and anemone-finetune-\w+ was stopped"
    ):
        task().resume_execution("__fail__", {"error": "Trigger timeout"}, context())
    assert kubernetes.jobs == {}


def test_a_failed_trigger_leaves_the_training_to_the_next_try_and_the_last_try_takes_it_along(task, kubernetes):
    deferred(task())
    for number, left in ((2, 1), (5, 0)):
        with pytest.raises(Exception, match="Unknown"):
            task().resume_execution("__fail__", {}, context(try_number=number))
        assert len(kubernetes.jobs) == left


def test_a_worker_that_is_stopped_while_the_task_goes_on_deletes_the_training(task, kubernetes, monkeypatch):
    trigger = deferred(task())
    operator = task()
    monkeypatch.setattr(operator, "training_ended", lambda _context, event: operator.on_kill())
    operator.resume_execution("training_ended", {"event": {"spec": trigger.spec}}, context())
    assert kubernetes.jobs == {}
