"""Whatever part of the serving side dies, at whatever moment of a rollout, the champion answers in the end, all of the
traffic is on one release, and the rollout says what became of it.

Given a champion under traffic, and a release on its way;
when the controller, the router or Triton is killed, or hangs, as the rollout reaches a state;
then the keeper brings it back, and the rollout ends, promoted whole or gone back whole.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest

from include.laptop.serving import keeper, kept_services
from include.laptop.up import start_keeper
from tests.faults.conftest import POLICY, TARGET, Serving, wait_for

STATES = ("precheck", "load", "ready", "smoke", "step 0", "step 1", "promoted", "rolling_back")
FAULTS = {
    "controller killed": ("controller", signal.SIGKILL),
    "router killed": ("router", signal.SIGKILL),
    "triton killed": ("triton", signal.SIGKILL),
    "controller hung": ("controller", signal.SIGSTOP),
    "router hung": ("router", signal.SIGSTOP),
    "triton hung": ("triton", signal.SIGSTOP),
}
_ORDER = {state: number for number, state in enumerate(STATES)}
_NUMBERS = itertools.count(1)


def reached(status: dict | None, state: str) -> bool:
    """Whether a rollout has got to `state`, or beyond: the first states last milliseconds."""
    if status is None:
        return False
    now = f"step {status['step']}" if status["state"] in ("step", "held") else status["state"]
    return now == "finished" or _ORDER.get(now, -1) >= _ORDER[state]


def leader(name: str) -> int:
    service = next(kept.service for kept in kept_services() if kept.name == name)
    identity = service._identity()
    assert identity is not None
    return identity.pid


@pytest.fixture(scope="module")
def champion(serving: Serving, traffic: Path) -> str:
    serving.start("first", 1)
    status = serving.ended("first")
    assert status["outcome"] == "promoted", status
    return status["name"]


@pytest.fixture
def fresh_keeper() -> None:
    """One that has not yet learnt to wait ever longer before it starts again what keeps dying."""
    keeper().stop(1.0)
    start_keeper()


@pytest.mark.usefixtures("fresh_keeper")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_moment_leaves_one_whole_release(
    serving: Serving, champion: str, fault: str, state: str
) -> None:
    before = serving.target()["champion"]
    version = 2 if before["release"]["version"] == "1" else 1
    rollout = f"kill-{next(_NUMBERS)}"
    # A rollout that is to be seen going back has to have a reason for it.
    patient = {"drill": "failing", "policy": {**POLICY, "min_requests": 2000}} if state == "rolling_back" else {}
    serving.start(rollout, version, **patient)
    wait_for(lambda: reached(serving.status(rollout), state), 120, f"the state {state}", every=0.01)
    name, number = FAULTS[fault]
    os.kill(leader(name), number)

    status = serving.ended(rollout)
    wait_for(serving.answers, 60, "the champion's answer")
    live, route = serving.target()["champion"], wait_for(lambda: settled(serving), 30, "the route to settle")
    assert status["outcome"] in ("promoted", "rolled_back", "inconclusive", "refused"), status
    if status["outcome"] == "promoted":
        assert live["name"] == status["name"]
    else:
        assert live["name"] == before["name"]
        assert status["reasons"]
    assert (route["champion"], route["canary"], route["weight"]) == (live["name"], None, 0)
    assert [note["state"] for note in status["notes"]][-1] == "finished"
    assert serving.target()["rollout"] is None


def settled(serving: Serving) -> dict | None:
    """The route, once the router that may just have been started again has got it."""
    route = serving.route()
    return route if route["champion"] == serving.target()["champion"]["name"] else None


def test_the_rollback_pressed_meanwhile_wins(serving: Serving, champion: str) -> None:
    before = serving.target()
    version = 2 if before["champion"]["release"]["version"] == "1" else 1
    serving.start("overtaken", version)
    wait_for(lambda: reached(serving.status("overtaken"), "step 0"), 60, "the first step", every=0.01)
    serving.ask({"id": "pressed", "kind": "rollback", "target": TARGET, "version": str(version)})
    pressed = serving.ended("pressed")
    overtaken = serving.ended("overtaken")
    assert pressed["outcome"] in ("promoted", "refused")
    assert overtaken["outcome"] in ("rolled_back", "promoted")
    assert serving.answers()
