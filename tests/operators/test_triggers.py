from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow._shared.module_loading import import_string
from airflow.serialization.serialized_objects import BaseSerialization

from operators.arrivals.trigger import DatasetArrivalTrigger
from operators.gates.trigger import ArtifactTrigger
from operators.release.trigger import RolloutTrigger

WAITING = json.loads((Path(__file__).parent / "golden" / "triggers-0.1.json").read_text())
"""Triggers as version 0.1 had Airflow keep them."""


@pytest.mark.parametrize(
    "trigger",
    [
        ArtifactTrigger(uri="file:///s/x"),
        RolloutTrigger(rollout="release.canary-1.1", told=3),
        RolloutTrigger(rollout="release.canary-1.1", own=False),
        DatasetArrivalTrigger(folder="/inbox", settle_seconds=1.5, poll_seconds=1),
    ],
)
def test_a_trigger_survives_its_serialization(trigger):
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    assert module == type(trigger).__module__ and name == type(trigger).__name__
    assert type(trigger)(**arguments).serialize() == trigger.serialize()


@pytest.mark.parametrize("kept", WAITING, ids=lambda kept: kept["classpath"].rpartition(".")[2])
def test_a_run_that_waits_during_an_upgrade_is_resumed(kept):
    arguments = BaseSerialization.deserialize(kept["kwargs"])
    trigger = import_string(kept["classpath"])(**arguments)
    _, now = trigger.serialize()
    assert {key: now[key] for key in arguments} == arguments
