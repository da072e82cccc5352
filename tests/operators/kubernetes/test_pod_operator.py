"""The operator with real clients, a real trigger and real jobs, against a small Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from include.artifacts.store import Store
from operators import PodJobOperator
from operators.kubernetes import pod_operator, pod_trigger
from tests.operators.kubernetes.airflow_api import task_context
from tests.operators.kubernetes.api import USER


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Poll without pauses."""
    monkeypatch.setattr(pod_operator, "_PAUSE_SECONDS", 0.02)


@pytest.fixture
def task(platform, kubernetes):
    def make(**kwargs) -> PodJobOperator:
        return PodJobOperator(**{"task_id": "heldout", "section": section(), "poll_interval": 0.02, **kwargs})

    return make


def section(**config):
    return {"job": "generate", "config": {"variant": "heldout", "rows": 5, **config}}


def context(try_number=1, **params):
    return task_context("heldout", try_number=try_number, **{"recipe": "demo/0.8M_lora_cpu", **params})


def deferred(operator, given) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as waiting:
        operator.execute(given)
    return waiting.value


def fires(trigger) -> dict:
    """What the trigger tells, after the way through Airflow's database."""
    path, arguments = trigger.serialize()
    assert path == "operators.kubernetes.pod_trigger.PodJobTrigger"
    again = pod_trigger.PodJobTrigger(**{**arguments, "startup_check_interval": 0.02})

    async def first():
        return await anext(again.run())

    return asyncio.run(asyncio.wait_for(first(), 60)).payload


def follow(task, given=None, **kwargs) -> str | None:
    """Through deferrals to the end; each step is another process, and so another operator."""
    given = given or context()
    waiting = deferred(task(**kwargs), given)
    while True:
        event = fires(waiting.trigger)
        try:
            return getattr(task(**kwargs), waiting.method_name)(given, event)
        except TaskDeferred as again:
            waiting = again


def test_a_job_runs_as_a_pod_and_its_task_returns_the_artifact(task, kubernetes, store):
    kubernetes.on_create = kubernetes.run
    given = context()
    uri = follow(task, given)
    assert len(store.read_bytes(Store.of(uri)[1], "data.jsonl").splitlines()) == 5
    assert given["ti"].xcom["return_value"] == uri
    assert kubernetes.pods == {}


def test_each_line_of_the_log_is_told_once_by_whoever_reads_it(task, kubernetes, caplog, capsys):
    """The trigger reads while the pod runs, the task what came after; a second's border is neither's end."""
    caplog.set_level("INFO")
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    given = context()
    waiting = deferred(task(logging_interval=0.05), given)
    (pod,) = kubernetes.pods.values()
    name = pod["metadata"]["name"]
    written = [f"line-{number:03d}" for number in range(120)]

    def write():
        for number, line in enumerate(written):
            kubernetes.logs[name] = kubernetes.logs.get(name, "") + f"{line}\n"
            time.sleep(0.02)
            while number == 60 and sum(request.endswith("/log") for request in kubernetes.requests) < 2:
                time.sleep(0.02)
        ended = {"exitCode": 75, "message": "a rank was killed", "reason": "Error", "finishedAt": None}
        kubernetes.logs[name] += "line-end\n"
        kubernetes.status(pod, "Failed", state={"terminated": ended})

    threading.Thread(target=write).start()
    event = fires(waiting.trigger)
    log = capsys.readouterr().out
    assert (log + caplog.text).count("line-000") == 1
    with pytest.raises(AirflowException, match="a rank was killed"):
        task().trigger_reentry(given, event)
    log += capsys.readouterr().out + caplog.text
    assert {line: log.count(line) for line in [*written, "line-end"]} == dict.fromkeys([*written, "line-end"], 1)


def test_when_the_tasks_time_is_up_its_pod_is_stopped(task, kubernetes):
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    deferred(task(), context())
    with pytest.raises(
        AirflowException, match=r"time \(execution_timeout\) was up, and anemone-generate-\w+ was stopped"
    ):
        task().resume_execution("__fail__", {"error": "Trigger timeout"}, context())
    (pod,) = kubernetes.pods.values()
    assert pod["metadata"]["deletionTimestamp"]


def test_what_was_made_before_needs_no_pod(task, kubernetes, capsys):
    kubernetes.on_create = kubernetes.run
    uri = follow(task)
    before, given = len(kubernetes.requests), context()
    assert task().execute(given) == given["ti"].xcom["return_value"] == uri
    assert len(kubernetes.requests) == before
    assert "refresh=['heldout']" in capsys.readouterr().out


def test_no_kubeconfig_of_the_connection_lies_in_the_triggers_queue(task, kubernetes, monkeypatch):
    config = kubernetes.kubeconfig.read_text()
    extra = json.dumps({"kube_config": config, "in_cluster": False})
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    queued = json.dumps(deferred(task(), context()).trigger.serialize(), default=str)
    assert "clusters" in config and "clusters" not in queued and 'kube_config":' not in queued


def test_a_stage_that_the_recipe_does_not_have_does_nothing(task, kubernetes):
    assert task(section=None).execute(context()) is None
    assert kubernetes.requests == []


def test_a_pod_says_whose_it_is_and_is_locked_down(task, kubernetes):
    deferred(task(), context(try_number=3))
    (pod,) = kubernetes.pods.values()
    labels = pod["metadata"]["labels"]
    mine = ("dag_id", "task_id", "run_id", "try_number", "anemone/recipe", "app.kubernetes.io/component")
    assert [labels[key] for key in mine] == [
        "customize", "heldout", "manual__1", "3", "demo.0.8M_lora_cpu", "generate",
    ]  # fmt: skip
    (container,) = pod["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "jobs.demo.generate", "--spec"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["restartPolicy"] == "Never"


def test_no_credentials_lie_in_the_triggers_queue(task, kubernetes):
    waiting = deferred(task(), context())
    assert "planted-kubernetes-token" not in json.dumps(waiting.trigger.serialize(), default=str)


def test_the_jobs_own_sentence_and_exit_code_are_the_verdict(task, kubernetes, tmp_path):
    kubernetes.on_create = kubernetes.run
    ingest = {"job": "ingest", "config": {"source": str(tmp_path / "nothing.jsonl")}}
    with pytest.raises(AirflowFailException, match="nothing.jsonl: there is no such file"):
        follow(task, section=ingest)
    assert kubernetes.pods == {}


@pytest.mark.remedy("build both from one commit, then clear the task")
def test_an_image_with_other_code_is_found_and_not_tried_again(task, kubernetes, platform):
    def other_image(pod):
        for entry in pod["spec"]["containers"][0]["env"]:
            if entry["name"] == "ANEMONE_IMAGE":
                entry["value"] = "anemone/jobs:older"
        kubernetes.run(pod)

    kubernetes.on_create = other_image
    with pytest.raises(AirflowFailException, match="the image anemone/jobs:older holds another code of job generate"):
        follow(task)
    kubernetes.on_create = kubernetes.run
    assert follow(task, context(try_number=2))


def test_exit_0_without_an_artifact_is_no_success(task, kubernetes):
    kubernetes.on_create = lambda pod: kubernetes.status(
        pod, "Succeeded", state={"terminated": {"exitCode": 0, "reason": "Completed"}}
    )
    with pytest.raises(AirflowException, match="ended well but left no artifact"):
        follow(task)


def test_a_pod_that_is_gone_is_no_success(task, kubernetes, caplog, capsys):
    given = context()
    waiting = deferred(task(), given)
    kubernetes.vanish(*kubernetes.pods)
    with pytest.raises(AirflowException, match="is gone, and nobody saw it end") as failure:
        task().trigger_reentry(given, fires(waiting.trigger))
    assert not isinstance(failure.value, AirflowFailException)
    # That sentence is all that the log has to say.
    log = caplog.text + capsys.readouterr().out
    assert not [word for word in ("Traceback", "headers", "404", "Unexpected", "GC'd") if word in log]


def test_a_refusal_is_logged_without_the_answers_headers(task, kubernetes, caplog, capsys):
    waiting = deferred(task(), context())
    kubernetes.answers["GET"] = (403, f'pods is forbidden: User "{USER}" cannot get resource "pods"')
    event = fires(waiting.trigger)
    assert (event["status"], event["message"].partition(" anemone-")[0]) == ("error", "Airflow may not watch pod")
    assert "headers" not in caplog.text + capsys.readouterr().out + json.dumps(event)


def test_a_pod_that_was_seen_to_end_well_may_be_gone(task, kubernetes):
    kubernetes.on_create = kubernetes.run
    given = context()
    waiting = deferred(task(), given)
    event = fires(waiting.trigger)
    kubernetes.vanish(*kubernetes.pods)
    assert task().trigger_reentry(given, event) == given["ti"].xcom["return_value"]


def test_why_a_pod_was_taken_away_is_remembered_once_it_is_gone(task, kubernetes):
    given = context()
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    waiting = deferred(task(), given)
    (pod,) = kubernetes.pods.values()
    pod["spec"]["nodeName"] = "gpu-7"
    preempted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    kubernetes.status(pod, "Running", state={"running": {}}, conditions=[preempted])
    kubernetes.vanish_after(4, pod["metadata"]["name"])
    event = fires(waiting.trigger)
    with pytest.raises(AirflowException, match=r"was preempted by a pod of a higher priority \(node gpu-7\)"):
        task().trigger_reentry(given, event)


def test_an_event_of_version_0_1_is_understood(task, kubernetes):
    given = context()
    waiting = deferred(task(), given)
    kubernetes.vanish(*kubernetes.pods)
    event = {**fires(waiting.trigger), "fate": "pod x was preempted"}
    assert {"spec", "log_place", "unreachable_seconds"} <= set(event)
    with pytest.raises(AirflowException, match="pod x was preempted"):
        task().trigger_reentry(given, event)


def test_a_crashed_worker_is_replaced_and_adopts_the_running_pod(task, kubernetes, store):
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    deferred(task(), context())
    (pod,) = kubernetes.pods.values()
    kubernetes.run(pod)
    uri = follow(task, context(try_number=2))
    assert store.manifest(Store.of(uri)[1]) is not None
    assert [request for request in kubernetes.requests if request.startswith("POST")] == [
        "POST /api/v1/namespaces/anemone/pods"
    ]


def test_a_pod_that_ended_while_nobody_watched_is_judged(task, kubernetes, store):
    kubernetes.on_create = kubernetes.run
    deferred(task(), context())
    (pod,) = kubernetes.pods.values()
    while pod["status"]["phase"] == "Running":
        time.sleep(0.05)
    manifest = store.manifest(store.names()[0])
    given = context(try_number=2)
    assert task().execute(given) == store.uri(manifest.name) == given["ti"].xcom["return_value"]


def test_what_a_crash_left_after_the_commit_is_taken_away(task, kubernetes):
    kubernetes.on_create = kubernetes.run
    waiting = deferred(task(), context())
    fires(waiting.trigger)
    assert kubernetes.pods
    assert task().execute(context(try_number=2))
    assert kubernetes.pods == {}


def test_a_failed_pod_of_the_try_before_makes_room(task, kubernetes):
    deferred(task(), context())
    (left,) = kubernetes.pods.values()
    kubernetes.status(left, "Failed", state={"terminated": {"exitCode": 1, "reason": "Error"}})
    kubernetes.on_create = kubernetes.run
    assert follow(task, context(try_number=2))


def test_a_cleared_task_waits_until_its_pod_has_gone(task, kubernetes):
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    waiting = deferred(task(), context())
    asyncio.run(waiting.trigger.on_kill())
    (pod,) = kubernetes.pods.values()
    assert pod["metadata"]["deletionTimestamp"]
    began = time.monotonic()
    threading.Timer(0.5, kubernetes.vanish, [pod["metadata"]["name"]]).start()
    deferred(task(), context(try_number=2))
    (second,) = kubernetes.pods.values()
    assert time.monotonic() - began > 0.5
    assert second["metadata"]["uid"] != pod["metadata"]["uid"]


def test_a_pod_that_never_goes_is_not_doubled(task, kubernetes, monkeypatch):
    monkeypatch.setattr(pod_operator, "OVERDUE_SECONDS", -4.5)
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    waiting = deferred(task(), context())
    asyncio.run(waiting.trigger.on_kill())
    (pod,) = kubernetes.pods.values()
    pod["metadata"]["deletionTimestamp"] = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    pod["spec"]["nodeName"] = "gpu-7"
    with pytest.raises(AirflowException, match="its node gpu-7 does not answer.*--force"):
        task().execute(context(try_number=2))
    assert list(kubernetes.pods.values()) == [pod]


def test_the_pod_of_another_plan_makes_room(task, kubernetes):
    kubernetes.on_create = lambda pod: None
    deferred(task(), context())
    (first,) = kubernetes.pods.values()
    deferred(task(section=section(rows=6)), context(try_number=2))
    (second,) = kubernetes.pods.values()
    assert first["metadata"]["name"] == second["metadata"]["name"]
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_marking_a_task_deletes_its_pod_while_it_waits_and_while_it_starts(task, kubernetes):
    waiting = deferred(task(), context())
    asyncio.run(waiting.trigger.on_kill())
    assert kubernetes.pods == {}
    operator = task()
    kubernetes.on_create = lambda pod: threading.Thread(target=operator.on_kill).start()
    with pytest.raises(AirflowException, match="stopped on request"):
        operator.execute(context())
    assert kubernetes.pods == {}


@pytest.mark.parametrize(("away", "left"), [(9, 0), (10_000, 1)])
def test_marking_a_task_while_the_api_is_away(task, kubernetes, monkeypatch, caplog, capsys, away, left):
    monkeypatch.setattr(pod_trigger, "_KILL_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(pod_trigger, "_KILL_SECONDS", 5 if left == 0 else 0.3)
    waiting = deferred(task(), context())
    (name,) = kubernetes.pods
    kubernetes.failing = away
    asyncio.run(waiting.trigger.on_kill())
    assert len(kubernetes.pods) == left
    log = caplog.text + capsys.readouterr().out
    assert (f"`kubectl --namespace anemone delete pods {name}`" in log) is bool(left)


@pytest.mark.parametrize(("try_number", "left"), [(1, 1), (5, 0)])
def test_one_whose_making_got_no_answer_is_adopted_and_goes_with_the_last_try(task, kubernetes, try_number, left):
    kubernetes.losing = 1
    kubernetes.on_create = lambda pod: setattr(kubernetes, "failing", 4)
    with pytest.raises(AirflowException, match="could not create pod"):
        task().execute(context(try_number))
    assert len(kubernetes.pods) == left


def test_an_api_that_is_away_for_a_while_costs_nothing(task, kubernetes):
    kubernetes.on_create = kubernetes.run
    given = context()
    waiting = deferred(task(), given)
    kubernetes.failing = 12
    assert task().trigger_reentry(given, fires(waiting.trigger))
    assert kubernetes.failing == 0


def test_an_api_that_stays_away_is_worth_another_try_which_adopts(task, kubernetes):
    given = context()
    waiting = deferred(task(), given)
    kubernetes.failing = 10_000
    waiting.trigger.trigger_kwargs["unreachable_seconds"] = 0.1
    event = fires(waiting.trigger)
    assert "503 Service Unavailable" in event["message"] and "headers" not in json.dumps(event)
    with pytest.raises(AirflowException, match=r"the Kubernetes API could not follow pod anemone-generate-\w+ \(503"):
        task().trigger_reentry(given, event)
    kubernetes.failing = 0
    (pod,) = kubernetes.pods.values()
    kubernetes.run(pod)
    assert follow(task, context(try_number=2))


@pytest.mark.parametrize(
    ("status", "message", "says", "fails"),
    [
        (
            403,
            'pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=8',
            "quota does not allow",
            False,
        ),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', "Pod Security refuses", True),
        (403, f'pods is forbidden: User "{USER}" cannot create resource "pods"', "Airflow may not create pod", True),
        (403, 'error looking up service account a/b: serviceaccount "b" not found', "create the service account", True),
        (400, 'admission webhook "policy.example" denied the request: no', "a policy of the cluster refuses", True),
        (
            422,
            "Pod is invalid: spec.containers[0].image: Required value",
            "correct the platform's cluster section",
            True,
        ),
        (404, 'namespaces "anemone" not found', "create the namespace", True),
        (
            500,
            'failed calling webhook "policy.example": connection refused',
            "a webhook of the cluster does not answer",
            False,
        ),
    ],
)
def test_a_refused_pod_says_why_and_whether_to_ask_again(task, kubernetes, status, message, says, fails):
    kubernetes.refusal = (status, message)
    with pytest.raises(AirflowException, match=says) as failure:
        task().execute(context())
    assert isinstance(failure.value, AirflowFailException) is fails


def test_an_image_that_is_not_there_fails_at_once_and_its_pod_goes(task, kubernetes):
    state = {"waiting": {"reason": "ErrImagePull", "message": 'failed to pull "anemone/jobs:0.1.0": not found'}}
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Pending", state=state)
    began = time.monotonic()
    with pytest.raises(AirflowFailException, match=r"the image anemone/jobs:0\.1\.0 cannot be pulled \(ErrImagePull"):
        follow(task)
    assert time.monotonic() - began < 60
    assert kubernetes.pods == {}


def test_a_missing_secret_is_waited_for_a_moment_and_named(task, kubernetes, monkeypatch):
    monkeypatch.setattr(pod_trigger, "STARTUP_FAILURE_SECONDS", 0.3)
    state = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "store-credentials" not found'}}
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Pending", state=state)
    with pytest.raises(AirflowFailException, match='secret "store-credentials" not found.*create the Secret'):
        follow(task)
    assert kubernetes.pods == {}


def test_a_pod_that_no_node_takes_says_the_schedulers_reason_and_goes(task, kubernetes, capsys):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    condition["message"] = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Pending", conditions=[condition])
    with pytest.raises(AirflowException, match=r"no node took pod .* within 1 s \(0/3 .*Insufficient nvidia.com/gpu"):
        follow(task, schedule_timeout_seconds=1)
    assert kubernetes.pods == {}


def becomes(phase, **status):
    """What happens to every new pod."""
    return lambda kubernetes: setattr(kubernetes, "on_create", lambda pod: kubernetes.status(pod, phase, **status))


def refused(message):
    return lambda kubernetes: setattr(kubernetes, "refusal", (403, f'pods "x" is forbidden: {message}'))


def each_size(**changes):
    return lambda cluster: {"sizes": {name: size.model_copy(update=changes) for name, size in cluster.sizes.items()}}


def resources(kind, **expected):
    return lambda spec: expected.items() <= spec["containers"][0]["resources"][kind].items()


WAITING = {"waiting": {"reason": "ErrImagePull", "message": "401 Unauthorized"}}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no cpu"}
FULL_DISK = 'Usage of EmptyDir volume "scratch" exceeds the limit "4Gi".'
QUOTA = "exceeded quota: q, requested: requests.memory=9Gi, used: requests.memory=0, limited: requests.memory=1Gi"


@pytest.mark.remedy(
    "push it, or name another in the platform's cluster.images; a private registry needs cluster.image_pull_secrets",
    "give its size more memory in the platform's cluster.sizes",
    "give its size more scratch in the platform's cluster.sizes",
    "add nodes, free some, or request less in the platform's cluster.sizes",
    "raise the quota, or request less in the platform's cluster.sizes",
    "change the platform's cluster.pod_template, or the namespace's level",
    "create the PriorityClass, or take it from the size in cluster.sizes",
    "create the service account, or name another in cluster.service_account",
)
@pytest.mark.parametrize(
    ("fails", "says", "changes", "shown"),
    [
        (becomes("Pending", state=WAITING), "name another in the platform's cluster.images",
         lambda cluster: {"images": {"jobs": "mine/jobs:2"}},
         lambda spec: spec["containers"][0]["image"] == "mine/jobs:2"),
        (becomes("Pending", state=WAITING), "a private registry needs cluster.image_pull_secrets",
         lambda cluster: {"image_pull_secrets": ("registry",)},
         lambda spec: spec["imagePullSecrets"] == [{"name": "registry"}]),
        (becomes("Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
         "give its size more memory in the platform's cluster.sizes",
         each_size(memory="9Gi"), resources("limits", memory="9Gi")),
        (becomes("Failed", reason="Evicted", message=FULL_DISK),
         "give its size more scratch in the platform's cluster.sizes", each_size(scratch="50Gi"),
         lambda spec: {"sizeLimit": "50Gi"} in [volume.get("emptyDir") for volume in spec["volumes"]]),
        (becomes("Pending", conditions=[UNSCHEDULABLE]), "or request less in the platform's cluster.sizes",
         each_size(cpu="250m"), resources("requests", cpu="250m")),
        (refused(QUOTA), "raise the quota, or request less in the platform's cluster.sizes",
         each_size(memory="512Mi"), resources("requests", memory="512Mi")),
        (refused('violates PodSecurity "restricted:latest"'), "change the platform's cluster.pod_template",
         lambda cluster: {"pod_template": {"spec": {"containers": [{"name": "base"}], "hostUsers": False}}},
         lambda spec: spec["hostUsers"] is False),
        (refused("no PriorityClass with name training was found"), "or take it from the size in cluster.sizes",
         each_size(priority_class=None), lambda spec: "priorityClassName" not in spec),
        (refused('error looking up service account a/b: serviceaccount "b" not found'),
         "name another in cluster.service_account", lambda cluster: {"service_account": {"jobs": "mine"}},
         lambda spec: spec["serviceAccountName"] == "mine"),
    ],
)  # fmt: skip
def test_the_next_pod_has_what_a_message_said_to_change(
    task, kubernetes, platform, monkeypatch, fails, says, changes, shown
):
    def on(cluster):
        found = platform.model_copy(update={"cluster": cluster})
        monkeypatch.setattr("operators.job.current_platform", lambda: found)

    on(platform.cluster.model_copy(update=each_size(priority_class="training")(platform.cluster)))
    fails(kubernetes)
    with pytest.raises(AirflowException, match=re.escape(says)):
        follow(task, schedule_timeout_seconds=1)
    kubernetes.refusal, kubernetes.on_create = None, lambda pod: None
    on(platform.cluster.model_copy(update=changes(platform.cluster)))
    deferred(task(), context(try_number=2))
    (pod,) = kubernetes.pods.values()
    assert shown(pod["spec"])


def test_a_lost_node_is_noticed(task, kubernetes):
    given = context()
    kubernetes.on_create = lambda pod: kubernetes.status(pod, "Running", state={"running": {}})
    waiting = deferred(task(), given)
    (pod,) = kubernetes.pods.values()
    pod["spec"]["nodeName"] = "gpu-7"
    pod["metadata"]["deletionTimestamp"] = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = fires(waiting.trigger)
    with pytest.raises(AirflowException, match="its node gpu-7 does not answer"):
        task().trigger_reentry(given, event)


def test_a_failed_pod_can_be_kept_for_a_look(task, kubernetes, platform, monkeypatch):
    cluster = platform.cluster.model_copy(update={"keep_failed_pods": True})
    monkeypatch.setattr("operators.job.current_platform", lambda: platform.model_copy(update={"cluster": cluster}))
    kubernetes.on_create = lambda pod: kubernetes.status(
        pod, "Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    )
    with pytest.raises(AirflowException, match=r"ran out of memory \(limit 3Gi"):
        follow(task)
    assert [pod["status"]["phase"] for pod in kubernetes.pods.values()] == ["Failed"]


def test_an_effect_that_goes_on_is_not_done_a_second_time_beside_it(task, kubernetes):
    champion = {"job": "champion", "config": {"model": "m"}}
    deferred(task(section=champion), context())
    (first,) = [dict(pod["metadata"]) for pod in kubernetes.pods.values()]
    waiting = deferred(task(section=champion), context(try_number=2))
    (second,) = kubernetes.pods.values()
    assert second["metadata"]["uid"] == first["uid"]
    assert waiting.trigger.trigger_kwargs["spec"] == first["annotations"]["anemone/spec"]


def test_a_failed_trigger_leaves_the_pod_to_the_next_try_and_the_last_try_takes_it_along(task, kubernetes):
    deferred(task(), context())
    for number, left in ((2, 1), (5, 0)):
        with pytest.raises(Exception, match="Unknown"):
            task().resume_execution("__fail__", {}, context(try_number=number))
        assert len(kubernetes.pods) == left
