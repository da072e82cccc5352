from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow._shared.module_loading import import_string
from airflow.serialization.serialized_objects import BaseSerialization

import operators
from operators.arrivals.trigger import DatasetArrivalTrigger
from operators.errors import FAILURE_MESSAGE_KEY
from operators.gates.trigger import ArtifactTrigger
from operators.kubernetes.pod_logs import LOG_POSITION
from operators.links import EVIDENCE_KEY
from operators.release.trigger import RolloutTrigger

WAITING = json.loads((Path(__file__).parent / "golden" / "triggers-0.1.json").read_text())
"""Triggers as version 0.1 had Airflow store them."""

RENAMED = {"told": "notes_logged", "form": "workload"}
"""Arguments that are called otherwise since then."""


@pytest.mark.parametrize(
    "trigger",
    [
        ArtifactTrigger(uri="file:///s/x"),
        RolloutTrigger(rollout="release.canary-1.1", notes_logged=3),
        RolloutTrigger(rollout="release.canary-1.1", own=False),
        DatasetArrivalTrigger(folder="/inbox", settle_seconds=1.5, poll_seconds=1),
    ],
)
def test_a_trigger_survives_its_serialization(trigger):
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    assert module == type(trigger).__module__ and name == type(trigger).__name__
    assert type(trigger)(**arguments).serialize() == trigger.serialize()


@pytest.mark.parametrize("stored", WAITING, ids=lambda stored: stored["classpath"].rpartition(".")[2])
def test_a_run_that_waits_during_an_upgrade_is_resumed(stored):
    former = BaseSerialization.deserialize(stored["kwargs"])
    trigger = import_string(stored["classpath"])(**former)
    path, arguments = trigger.serialize()
    expected = {RENAMED.get(name, name): value for name, value in former.items()}
    assert {name: arguments[name] for name in expected} == expected
    again = import_string(path)(**arguments)
    assert state(again) == state(trigger)


def state(trigger) -> dict[str, Any]:
    """The attributes of a trigger that its arguments set."""
    return {name: value for name, value in vars(trigger).items() if isinstance(value, str | int | float | dict)}


@pytest.mark.parametrize(
    ("operator", "method"),
    [
        ("GateSensor", "judge_after_wait"),
        ("CanaryRolloutOperator", "resume"),
        ("CanaryRolloutOperator", "ask_again"),
        ("PodJobOperator", "trigger_reentry"),
        ("DistributedJobOperator", "trigger_reentry"),
        ("DistributedJobOperator", "training_ended"),
    ],
)
def test_a_task_that_waits_during_an_upgrade_finds_the_method_that_resumes_it(operator, method):
    """Airflow stores its name; what the methods take of an older event is tested beside each of them."""
    assert callable(getattr(getattr(operators, operator), method))


def test_what_a_running_task_has_pushed_is_found_after_an_upgrade():
    assert (FAILURE_MESSAGE_KEY, EVIDENCE_KEY, LOG_POSITION) == ("sentence", "evidence", "log_place")
