"""The operator and its trigger against a controller that speaks the real API over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from include.errors import ConfigurationError
from include.recipes import resolve
from include.release.controller_client import ControllerClient
from include.release.rollouts import RolloutStatus, TargetStatus
from operators import CanaryRolloutOperator
from operators.release import rollout_operator, trigger
from operators.release.trigger import RolloutTrigger
from tests.operators.conftest import TOKEN, ControllerPeer, live
from tests.proxies import DEAD_PROXIES

EVIDENCE = "file:///store/evidence-1"


class TaskState(dict):
    """The two calls of Airflow's task state store; values are JSON, as there."""

    def get(self, key, default=None):
        return json.loads(self[key]) if key in self else default

    def set(self, key, value):
        self[key] = json.dumps(value)


@pytest.fixture
def context():
    """Of one task: every try gets the same state."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="release",
        task_id="canary",
        map_index=-1,
        max_tries=30,
        pushed=pushed,
        xcom_push=lambda key, value: pushed.update({key: value}),
    )
    return {"run_id": "manual__2026-01-02T03:04:05+00:00", "ti": ti, "task_state_store": TaskState()}


@pytest.fixture
def release(platform, store, commit):
    commit("engine-1", {"engine/model.bin": "weights"})

    def make(**kwargs):
        given = {
            "task_id": "canary",
            "kind": "release",
            "target": "kubectl",
            "version": "2",
            "engine": store.uri("engine-1"),
            "expected_champion": "1",
            "policy": resolve("demo/0.8M_lora_cpu").plan()["canary"],
            **kwargs,
        }
        return CanaryRolloutOperator(**given)

    return make


@pytest.fixture
def soon(monkeypatch):
    """Defer at once."""
    monkeypatch.setattr(rollout_operator, "_DEFER_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(rollout_operator, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(trigger, "_LEAST_SECONDS", 0.1)


def clear(context) -> None:
    """What Airflow does to a task that a person clears: it gets new tries."""
    context["ti"].max_tries += 1 + 30


def ended(outcome: str, **more: Any) -> dict[str, Any]:
    champion = live("2" if outcome == "promoted" else "1")
    return {
        "state": "finished",
        "outcome": outcome,
        "name": "kubectl-v2-aaaaaaaa",
        "champion": champion.model_dump(),
        "evidence": EVIDENCE,
        "reasons": () if outcome == "promoted" else ("errors: 12 of 80 against 1 of 400, e-value 940 is above 20",),
        "figures": {"canary_requests": 80.0, "e_errors": 940.0},
        **more,
    }


def deferred(operator, context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(context)
    return deferral.value


def fired(trigger: RolloutTrigger, seconds: float = 30) -> dict[str, Any]:
    """The trigger's event, after the way that its arguments take through Airflow's database."""
    _, arguments = trigger.serialize()
    again = RolloutTrigger(**json.loads(json.dumps(arguments)))
    return asyncio.run(asyncio.wait_for(anext(again.run()), seconds)).payload


def follow(operator, context, deferral: TaskDeferred) -> Any:
    return getattr(operator, deferral.method_name)(context, event=fired(deferral.trigger))


def test_what_is_asked_for(release, controller: ControllerPeer, context, store, soon):
    deferred(release(drill="slow"), context)
    (request,) = controller.requests.values()
    assert (request.kind, request.target, request.drill, request.expected_champion) == (
        "release",
        "kubectl",
        "slow",
        "1",
    )
    assert request.release.version == "2"
    assert request.release.engine.digest == store.manifest("engine-1").content_digest
    assert list(request.policy.steps) == [0.1, 0.5]


def test_a_rollout_that_ends_at_once_is_not_deferred(release, controller: ControllerPeer, context):
    controller.story = lambda status: {} if status.outcome else ended("promoted")
    assert release().execute(context) == {
        "outcome": "promoted",
        "model": "kubectl",
        "version": "2",
        "release": "kubectl-v2-aaaaaaaa",
        "evidence": EVIDENCE,
    }
    assert context["ti"].pushed == {"evidence": EVIDENCE}


@pytest.mark.parametrize("outcome", ["promoted", "rolled_back"])
def test_evidence_that_is_stored_later_is_named_with_its_place(
    release, controller: ControllerPeer, context, capsys, caplog, outcome
):
    later = {"evidence": None, "evidence_pending": EVIDENCE}
    controller.story = lambda status: {} if status.outcome else ended(outcome, **later)
    if outcome == "promoted":
        assert release().execute(context)["evidence"] == EVIDENCE
    else:
        with pytest.raises(AirflowFailException, match=f"{EVIDENCE} will hold every analysis run, once the store"):
            release().execute(context)
    log = capsys.readouterr().out + caplog.text
    assert f"the canary controller keeps it, and stores it at {EVIDENCE} once the store takes it" in log
    assert context["ti"].pushed["evidence"] == context["ti"].pushed["evidence_pending"] == EVIDENCE


def test_promoted_after_a_deferral_and_the_log_tells_the_story_once(
    release, controller: ControllerPeer, context, soon, capsys, caplog
):
    operator = release()
    deferral = deferred(operator, context)
    progress = iter(
        [
            {"state": "load", "notes": [("load", "loading kubectl-v2")]},
            {"state": "step", "step": 0, "weight": 0.1, "notes": [("step", "10% of the traffic")]},
            ended("promoted", notes=[("promoted", "all of the traffic")]),
        ]
    )
    controller.story = lambda status: next(progress, {})
    with caplog.at_level("INFO"):
        outcome = follow(operator, context, deferral)
    assert outcome["version"] == "2"
    log = capsys.readouterr().out + caplog.text
    for message in ("asked for", "loading kubectl-v2", "10% of the traffic", "all of the traffic"):
        assert log.count(message) == 1, message
    assert "weight=0.1" in log
    assert "canary_requests=80" in log
    assert "at=03:04:05" in log


@pytest.mark.parametrize(
    ("outcome", "drill", "remedy"),
    [
        ("rolled_back", "none", "Correct the data set or the recipe"),
        ("rolled_back", "failing", "It was a drill: there is nothing to correct"),
        ("inconclusive", "failing", "canary.min_requests"),
        ("refused", "failing", "Nothing was loaded"),
    ],
)
def test_every_other_outcome_ends_red_with_numbers_and_what_to_do(
    release, controller: ControllerPeer, context, soon, outcome, drill, remedy
):
    operator = release(drill=drill)
    deferral = deferred(operator, context)
    controller.story = lambda status: {} if status.outcome else ended(outcome)
    with pytest.raises(AirflowFailException) as failure:
        follow(operator, context, deferral)
    said = str(failure.value)
    for words in (
        f"{outcome.replace('_', ' ')}{'' if drill == 'none' else ' (drill: failing)'}: errors: 12 of 80",
        "Version 1 answers kubectl.",
        remedy,
        EVIDENCE,
    ):
        assert words in said, words
    assert context["ti"].pushed == {"evidence": EVIDENCE}


def test_no_proxy_stands_between_a_task_or_its_trigger_and_the_controller(
    release, controller: ControllerPeer, context, soon, monkeypatch
):
    for name, address in DEAD_PROXIES.items():
        monkeypatch.setenv(name, address)
    operator = release()
    deferral = deferred(operator, context)
    operator.on_kill()
    asyncio.run(deferral.trigger.on_kill())
    assert len(controller.aborted) == 2
    controller.story = lambda status: {} if status.outcome else ended("promoted")
    assert follow(operator, context, deferral)["outcome"] == "promoted"


def test_nothing_is_live_after_a_first_release_that_failed(release, controller: ControllerPeer, context):
    controller.story = lambda status: {} if status.outcome else ended("rolled_back", champion=None)
    with pytest.raises(AirflowFailException, match="Nothing is live on kubectl"):
        release().execute(context)


def test_a_retry_after_a_crash_joins_the_rollout_of_the_try_before(
    release, controller: ControllerPeer, context, monkeypatch
):
    def crash(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(CanaryRolloutOperator, "_log_notes", crash)
        with pytest.raises(SystemExit):
            release().execute(context)
    controller.story = lambda status: {} if status.outcome else ended("rolled_back")
    with pytest.raises(AirflowFailException, match="rolled back"):
        release().execute(context)
    assert len(controller.requests) == 1


def test_a_crash_while_the_verdict_is_read_reads_it_again(
    release, controller: ControllerPeer, context, soon, monkeypatch
):
    def crash(*_):
        raise SystemExit(137)

    operator = release()
    deferral = deferred(operator, context)
    controller.story = lambda status: {} if status.outcome else ended("rolled_back")
    with monkeypatch.context() as patch:
        patch.setattr(CanaryRolloutOperator, "_conclude", crash)
        with pytest.raises(SystemExit):
            follow(operator, context, deferral)
    with pytest.raises(AirflowFailException, match="rolled back"):
        release().execute(context)
    assert len(controller.requests) == 1


@pytest.mark.remedy("Correct the data set or the recipe and run customize, or clear this task to try again.")
def test_a_task_cleared_after_its_verdict_starts_another_rollout(release, controller: ControllerPeer, context):
    controller.story = lambda status: {} if status.outcome else ended("rolled_back")
    for number in (1, 2):
        with pytest.raises(AirflowFailException, match="and run customize, or clear this task to try again"):
            release().execute(context)
        assert len(controller.requests) == number
        clear(context)
    assert not controller.aborted
    # A corrected data set or recipe gives another version, and a run of its own.
    controller.story = lambda status: {} if status.outcome else ended("promoted")
    assert release(version="3").execute({**context, "run_id": "manual__2", "task_state_store": TaskState()})


def test_a_task_cleared_while_it_waited_takes_its_rollout_back_and_starts_another(
    release, controller: ControllerPeer, context, soon
):
    deferred(release(), context)
    (first,) = controller.requests
    controller.busy_with = first
    clear(context)
    operator = release()
    waits = deferred(operator, context)
    assert controller.aborted == [(first, "its task was cleared or stopped")]
    controller.busy_with = None
    controller.tell(first, **ended("rolled_back"))
    with pytest.raises(TaskDeferred):
        follow(operator, context, waits)
    assert len(controller.requests) == 2
    assert len(controller.aborted) == 1


def test_a_crash_after_the_verdict_tells_it_again(release, controller: ControllerPeer, context):
    """Killed before Airflow has the outcome, and not cleared by anybody: the task starts no other rollout."""
    controller.story = lambda status: {} if status.outcome else ended("rolled_back")
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="rolled back"):
            release().execute(context)
    assert len(controller.requests) == 1


def test_a_crash_between_the_deferral_and_its_end_joins_the_rollout(release, controller: ControllerPeer, context, soon):
    for _ in range(2):
        deferred(release(), context)
    assert len(controller.requests) == 1
    assert not controller.aborted


def test_a_task_cleared_after_a_promotion_that_still_stands_has_nothing_to_do(
    release, controller: ControllerPeer, context
):
    controller.story = lambda status: {} if status.outcome else ended("promoted")
    release().execute(context)
    controller.targets["kubectl"] = TargetStatus(target="kubectl", champion=live("2"))
    clear(context)
    assert release().execute(context)["version"] == "2"
    assert len(controller.requests) == 1
    controller.targets["kubectl"] = TargetStatus(target="kubectl", champion=live("3"))
    clear(context)
    release().execute(context)
    assert len(controller.requests) == 2


def test_each_run_and_each_mapped_task_asks_for_its_own(release, controller: ControllerPeer, context, soon):
    for change in ({}, {"run_id": "manual__2"}, {"ti": SimpleNamespace(**{**vars(context["ti"]), "map_index": 1})}):
        deferred(release(), {**context, **change, "task_state_store": TaskState()})
    assert len(controller.requests) == 3


@pytest.fixture
def other(controller: ControllerPeer) -> str:
    """A rollout of another task that goes on at the target."""
    status = RolloutStatus(id="release.canary-other.1", kind="release", target="kubectl", state="step")
    controller.rollouts[status.id] = status
    controller.busy_with = status.id
    controller.tell(status.id, notes=[("step", "the other's own note")])
    return status.id


def test_another_rollout_at_the_target_is_named_and_waited_for(
    release, controller: ControllerPeer, context, other, capsys, caplog
):
    operator = release()
    with caplog.at_level("INFO"):
        waits = deferred(operator, context)
        controller.tell(other, state="finished", outcome="promoted")
        controller.busy_with = None
        controller.story = lambda status: {} if status.outcome else ended("promoted")
        assert follow(operator, context, waits)["outcome"] == "promoted"
    log = capsys.readouterr().out + caplog.text
    assert f"rollout {other} is in progress at kubectl" in log
    assert "the other's own note" not in log
    assert not controller.aborted


def test_who_ends_a_task_that_waits_for_anothers_rollout_leaves_that_one_alone(
    release, controller: ControllerPeer, context, other
):
    waits = deferred(release(), context)
    asyncio.run(waits.trigger.on_kill())
    assert not controller.aborted


def test_anothers_rollout_that_cannot_be_followed_is_no_reason_to_fail(
    release, controller: ControllerPeer, context, other
):
    operator = release()
    waits = deferred(operator, context)
    del controller.rollouts[other]
    controller.busy_with = None
    controller.story = lambda status: {} if status.outcome else ended("promoted")
    assert follow(operator, context, waits)["outcome"] == "promoted"


def test_a_retry_that_would_release_something_else_is_refused(release, controller: ControllerPeer, context, soon):
    operator = release()
    deferred(operator, context)
    with pytest.raises(AirflowFailException, match="with different content .*start a new run of the DAG"):
        release(drill="slow").execute(context)


def test_a_target_that_is_being_retired_is_worth_another_try(release, controller: ControllerPeer, context):
    controller.failing = 409
    with pytest.raises(AirflowException, match="cannot begin .* now: the disk is full") as failure:
        release().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_controller_that_is_not_there_is_worth_another_try(release, controller, context, platform, monkeypatch):
    serving = platform.serving.model_copy(update={"controller_url": "http://127.0.0.1:9"})
    monkeypatch.setattr(rollout_operator, "current_platform", lambda: platform.model_copy(update={"serving": serving}))
    with pytest.raises(
        AirflowException, match=r"does not answer at http://127\.0\.0\.1:9 .*`make up` starts it"
    ) as failure:
        release().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_controller_that_fails_is_worth_another_try(release, controller: ControllerPeer, context):
    controller.failing = 500
    with pytest.raises(AirflowException, match="failed at POST /rollouts .the disk is full.: see its log") as failure:
        release().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_refused_request_is_not_tried_again(release, controller: ControllerPeer, context):
    controller.failing = 422
    with pytest.raises(AirflowFailException, match="refused POST /rollouts: the disk is full"):
        release().execute(context)


def test_a_missing_and_a_wrong_token(release, controller, context, platform):
    token = Path(platform.serving.token_file)
    token.write_text("older")
    with pytest.raises(AirflowFailException, match="does not take the token in"):
        release().execute(context)
    token.unlink()
    with pytest.raises(AirflowException, match=r"token .* cannot be read \(No such file or directory\): `make up`"):
        release().execute(context)


def test_another_answer_than_the_controllers_is_one_clear_error(release, controller, context, monkeypatch):
    monkeypatch.setattr(controller, "answer", lambda *_: (200, {"hello": "world"}))
    with pytest.raises(AirflowFailException, match="is not this Anemone's canary controller"):
        release().execute(context)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "two"}, r"this release cannot be requested: release\.version"),
        ({"drill": "loud"}, "cannot be requested: drill"),
        ({"policy": {"steps": [0.5, 0.1]}}, r"policy\.steps: .*do not increase"),
        ({"engine": None}, "needs an engine"),
        ({"engine": "file:///tmp/engine-9"}, "engine-9 does not exist"),
    ],
)
def test_what_cannot_be_asked_for_is_named_before_anything_is_sent(release, controller, context, change, says):
    with pytest.raises(AirflowFailException, match=says):
        release(**change).execute(context)
    assert controller.calls == []


def test_a_rollback_names_a_version_or_none(platform, controller: ControllerPeer, context):
    controller.story = lambda status: {} if status.outcome else ended("promoted", champion=live("1").model_dump())
    back = CanaryRolloutOperator(task_id="rollback", kind="rollback", target="kubectl", version="")
    assert back.execute(context)["version"] == "1"
    (request,) = controller.requests.values()
    assert (request.kind, request.version, request.release) == ("rollback", None, None)


def test_a_controller_that_restarts_is_waited_for(release, controller: ControllerPeer, context, soon, platform):
    deferral = deferred(release(), context)

    async def scenario():
        event = asyncio.create_task(anext(deferral.trigger.run()))
        controller.failing = 503
        seen = len(controller.calls)
        while len(controller.calls) < seen + 3:
            await asyncio.sleep(0.01)
        (rollout,) = controller.requests
        controller.tell(rollout, **ended("promoted"))
        controller.failing = None
        return (await asyncio.wait_for(event, 30)).payload

    assert asyncio.run(scenario())["error"] is None


def test_a_controller_that_stays_away_is_given_up_and_the_next_try_joins(
    release, controller: ControllerPeer, context, soon, platform, monkeypatch
):
    serving = platform.serving.model_copy(update={"unreachable_seconds": 0.1})
    monkeypatch.setattr(trigger, "current_platform", lambda: platform.model_copy(update={"serving": serving}))
    operator = release()
    deferral = deferred(operator, context)
    controller.failing = 503
    with pytest.raises(AirflowException, match="which the next try joins") as failure:
        follow(operator, context, deferral)
    assert not isinstance(failure.value, AirflowFailException)
    controller.failing = None
    deferred(release(), context)
    assert len(controller.requests) == 1 and not controller.aborted


@pytest.mark.parametrize("trouble", [None, "the canary controller does not answer"])
def test_an_event_of_version_0_1_is_understood(
    release, controller: ControllerPeer, context, soon, trouble, capsys, caplog
):
    operator = release()
    deferral = deferred(operator, context)
    (rollout,) = controller.requests
    controller.tell(rollout, **ended("promoted", notes=[("step", "half of the traffic"), ("promoted", "all of it")]))
    event = {"rollout": rollout, "told": 2, "trouble": trouble}
    with caplog.at_level("INFO"):
        if trouble is not None:
            with pytest.raises(AirflowException, match=trouble):
                operator.resume(context, event)
            return
        assert operator.resume(context, event)["outcome"] == "promoted"
    log = capsys.readouterr().out + caplog.text
    assert "all of it" in log and "half of the traffic" not in log
    assert deferral.method_name == "resume"


def test_the_state_of_a_task_of_version_0_1_is_understood(release, controller: ControllerPeer, context, soon):
    context["task_state_store"].set("rollout", {"number": 3, "max_tries": 30, "stopped": False})
    deferred(release(), context)
    (rollout,) = controller.requests
    assert rollout.endswith(".3")


def test_a_controller_that_lost_its_state_gets_the_request_again(release, controller: ControllerPeer, context, soon):
    operator = release()
    deferral = deferred(operator, context)
    (first,) = controller.requests
    controller.requests.clear()
    controller.rollouts.clear()
    with pytest.raises(AirflowException, match=f"does not know rollout {first} any more"):
        follow(operator, context, deferral)
    deferred(release(), context)
    assert list(controller.requests) == [first]


def test_a_person_who_ends_the_waiting_task_takes_the_rollout_back(release, controller, context, soon):
    deferral = deferred(release(), context)
    (rollout,) = controller.requests
    asyncio.run(deferral.trigger.on_kill())
    assert [aborted for aborted, _ in controller.aborted] == [rollout]


def test_a_triggerer_that_stops_leaves_the_rollout_alone(release, controller, context, soon):
    deferral = deferred(release(), context)

    async def scenario():
        task = asyncio.create_task(anext(deferral.trigger.run()))
        seen = len(controller.calls)
        while len(controller.calls) < seen + 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await deferral.trigger.cleanup()

    asyncio.run(scenario())
    assert not controller.aborted


def test_a_task_that_is_stopped_before_it_waits_takes_the_rollout_back(release, controller: ControllerPeer, context):
    operator = release()

    def story(status: RolloutStatus) -> dict[str, Any]:
        if status.outcome:
            return {}
        if not controller.aborted:
            operator.on_kill()
        return ended("rolled_back")

    controller.story = story
    with pytest.raises(AirflowFailException):
        operator.execute(context)
    assert [reason for _, reason in controller.aborted] == ["its task was stopped"]


def test_the_try_after_one_that_was_stopped_does_not_take_its_abort_for_the_verdict(
    release, controller: ControllerPeer, context, soon, monkeypatch
):
    def killed(*_):
        operator.on_kill()
        raise SystemExit(143)

    operator = release()
    with monkeypatch.context() as patch:
        patch.setattr(operator, "_log_notes", killed)
        with pytest.raises(SystemExit):
            operator.execute(context)
    (first,) = controller.requests
    controller.tell(first, **ended("rolled_back"))
    deferred(release(), context)
    assert len(controller.requests) == 2


def test_a_stop_in_the_middle_of_a_talk_with_the_supervisor_still_takes_the_rollout_back(
    release, controller: ControllerPeer, context, soon
):
    """Airflow's channel lets nobody speak until the interrupted one is done, which is after the signal handler."""
    operator = release()
    deferred(operator, context)
    speaking = threading.Lock()

    class Channel(TaskState):
        def get(self, key, default=None):
            with speaking:
                return super().get(key, default)

    operator._state = Channel(context["task_state_store"])
    with speaking:
        operator.on_kill()
        assert [reason for _, reason in controller.aborted] == ["its task was stopped"]


@pytest.mark.remedy("clear this task so that promote follows")
@pytest.mark.parametrize("promoted", [True, False])
def test_who_ends_the_waiting_task_is_told_where_its_rollout_is_promoted_already(
    release, controller: ControllerPeer, context, soon, promoted, capsys, caplog
):
    deferral = deferred(release(), context)
    (rollout,) = controller.requests
    if promoted:
        controller.tell(rollout, **ended("promoted"))
    with caplog.at_level("INFO"):
        asyncio.run(deferral.trigger.on_kill())
    log = capsys.readouterr().out + caplog.text
    assert ("already promoted" in log and "clear this task so that promote follows" in log) == promoted
    assert ("goes back to the champion" in log) != promoted
    if promoted:
        controller.targets["kubectl"] = TargetStatus(target="kubectl", champion=live("2"))
        clear(context)
        assert release().execute(context)["outcome"] == "promoted"
        assert len(controller.requests) == 1


def test_an_abort_that_the_api_does_not_know_is_no_success(controller: ControllerPeer, platform, monkeypatch):
    monkeypatch.setattr(controller, "answer", lambda *_: (202, {}))
    with pytest.raises(ConfigurationError, match="refused POST /rollouts/x/abort"):
        ControllerClient(controller.url, platform.serving.token_file).abort("x", "a reason")


def test_the_token_goes_to_the_controller_and_nowhere_else(
    release, controller: ControllerPeer, context, soon, capsys, caplog
):
    operator = release()
    deferral = deferred(operator, context)
    controller.story = lambda status: {} if status.outcome else ended("rolled_back")
    with caplog.at_level("DEBUG"), pytest.raises(AirflowFailException) as failure:
        follow(operator, context, deferral)
    output = capsys.readouterr()
    everything = [output.out, output.err, caplog.text, repr(deferral.trigger), repr(context), str(failure.value)]
    everything += [repr(vars(operator)), repr(deferral.trigger.serialize()), repr(list(controller.requests.values()))]
    assert TOKEN not in "".join(everything)
