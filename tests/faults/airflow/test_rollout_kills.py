"""Whatever part of the serving side dies, at whatever moment of a rollout, the champion answers in the end, all of the
traffic is on one release, and the rollout says what became of it.

Given a champion under traffic, and a release on its way;
when the controller, the router or Triton is killed, or hangs, as the rollout reaches a state;
then the keeper brings it back, and the rollout ends, promoted whole or gone back whole.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from include.laptop.serving import keeper, supervised_services
from include.laptop.up import start_keeper
from tests.faults.airflow.conftest import TARGET, Serving
from tests.faults.scenario import scenario
from tests.toy_releases import POLICY
from tests.waiting import wait_for

STATES = ("precheck", "load", "ready", "smoke", "step 0", "step 1", "promoted", "rolling_back")
FAULTS = {
    "the controller is killed": ("controller", signal.SIGKILL),
    "the router is killed": ("router", signal.SIGKILL),
    "Triton is killed": ("triton", signal.SIGKILL),
    "the controller hangs": ("controller", signal.SIGSTOP),
    "the router hangs": ("router", signal.SIGSTOP),
    "Triton hangs": ("triton", signal.SIGSTOP),
}
THEN = {
    "controller": "the keeper brings it back, the rollout ends whole, and no request is lost",
    "router": "the keeper brings it back, and the rollout ends, promoted whole or gone back whole",
    "triton": "the keeper brings it back, and the rollout ends, promoted whole or gone back whole",
}
HIT: dict[str, list[str]] = {fault: [] for fault in FAULTS}
"""In which state each fault really fell."""

_ORDER = {state: number for number, state in enumerate(STATES)}
_NUMBERS = itertools.count(1)


def reached(status: dict | None, state: str) -> str | None:
    """Where a rollout is once it has got to `state`, or beyond: the first states last milliseconds."""
    if status is None:
        return None
    now = f"step {status['step']}" if status["state"] == "step" and status["weight"] else status["state"]
    return now if now == "finished" or _ORDER.get(now, -1) >= _ORDER[state] else None


def leader(name: str) -> int:
    service = next(kept.service for kept in supervised_services() if kept.name == name)
    identity = service._identity()
    assert identity is not None
    return identity.pid


@pytest.fixture(scope="module")
def champion(serving: Serving, traffic: Path) -> str:
    serving.start("first", 1)
    status = serving.ended("first")
    assert status["outcome"] == "promoted", status
    wait_for(lambda: traffic.is_file() and json.loads(traffic.read_text())["answered"], 60, "the first answers")
    return status["name"]


@pytest.fixture
def fresh_keeper() -> None:
    """One that has not yet learnt to wait ever longer before it starts again what keeps dying."""
    keeper().stop(1.0)
    start_keeper()


def falls(fault: str) -> pytest.MarkDecorator:
    return scenario(
        given="a champion under traffic, a release on its way, and the keeper",
        when=f"{fault}, once in each state of the rollout",
        then=THEN[FAULTS[fault][0]],
    )


@pytest.mark.usefixtures("fresh_keeper")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fault", [pytest.param(fault, marks=falls(fault)) for fault in FAULTS])
def test_a_fault_at_any_moment_leaves_one_whole_release(
    serving: Serving, traffic: Path, champion: str, reads: Callable[[str], None], fault: str, state: str
) -> None:
    before = serving.target()["champion"]
    version = 2 if before["release"]["version"] == "1" else 1
    rollout = f"kill-{next(_NUMBERS)}"
    # A rollout that is to be seen going back has to have a reason for it.
    lost_before = steady_loss(traffic)
    patient = {"drill": "failing", "policy": {**POLICY, "min_requests": 2000}} if state == "rolling_back" else {}
    serving.start(rollout, version, **patient)
    at = wait_for(lambda: reached(serving.status(rollout), state), 120, f"the state {state}", every=0.002)
    name, number = FAULTS[fault]
    os.kill(leader(name), number)
    HIT[fault].append(at)

    status = serving.ended(rollout)
    wait_for(serving.answers, 60, "the champion's answer")
    live, route = serving.target()["champion"], wait_for(lambda: settled(serving), 30, "the route to settle")
    if status["outcome"] == "promoted":
        assert live["name"] == status["name"]
        assert state != "rolling_back"
    else:
        assert live["name"] == before["name"]
        assert status["reasons"]
        assert at != "promoted", "what is promoted goes forward"
        reads(status["reasons"][0])
    assert (route["champion"], route["canary"], route["weight"]) == (live["name"], None, 0)
    assert [note["state"] for note in status["notes"]][-1] == "finished"
    assert serving.target()["rollout"] is None
    if name == "controller":
        assert lost(traffic) == lost_before, "the controller is not in the way of a request"


@scenario(
    given="those 48 faults",
    when="it is counted in which state each really fell",
    then="each kind fell before a canary had traffic, at both steps, and while it went back",
)
def test_the_faults_fell_into_every_kind_of_state(champion: str) -> None:
    """Loading and proving last milliseconds with so small an engine, so one of them is hit now and then, not each."""
    for fault, states in HIT.items():
        assert {"step 0", "step 1", "rolling_back"} <= set(states), (fault, states)
        assert {"precheck", "load", "ready", "smoke"} & set(states), (fault, states)


def lost(counts: Path) -> int:
    """Requests of the traffic generator that got no answer, as it last wrote them down, which it does each second."""
    return json.loads(counts.read_text())["failed"]


def steady_loss(counts: Path) -> int:
    """The same once the fault of the test before is over for the clients, too: for two seconds nothing was lost."""
    while True:
        before = lost(counts)
        time.sleep(2.5)
        if lost(counts) == before:
            return before


def settled(serving: Serving) -> dict | None:
    """The route, once the router that may just have been started again has got it."""
    route = serving.route()
    return route if route["champion"] == serving.target()["champion"]["name"] else None


@scenario(
    given="a canary with traffic",
    when="rollback is pressed",
    then="the release gives way at once, and all traffic is on the champion",
)
def test_a_rollback_pressed_meanwhile_wins(serving: Serving, champion: str, reads: Callable[[str], None]) -> None:
    before = serving.target()["champion"]
    serving.start("overtaken", 2 if before["release"]["version"] == "1" else 1)
    wait_for(lambda: reached(serving.status("overtaken"), "step 0"), 60, "the first step", every=0.01)
    serving.ask(
        {"id": "pressed", "kind": "rollback", "target": TARGET, "version": before["release"]["version"]},
    )
    overtaken, pressed = serving.ended("overtaken"), serving.ended("pressed")
    assert (overtaken["outcome"], pressed["outcome"]) == ("rolled_back", "promoted")
    assert "superseded by the rollback pressed" in overtaken["reasons"][0]
    reads(overtaken["reasons"][0])
    assert serving.target()["champion"]["name"] == before["name"]
    assert serving.answers()
