"""Releases, and the process that is killed in the midst of one: the controller, the router, or Triton."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from include.release.rollouts import RolloutRequest
from tests.faults.scenario import scenario
from tests.faults.serving.conftest import Live
from tests.jobs.serving.canary.services import TARGET


@scenario(
    given="a live release under constant traffic",
    when="another is promoted, a third is a bad one (drill), and a person rolls back and forward again",
    then="no client notices, a rollback takes less than 10 s, and each decision can be repeated from its evidence",
)
def test_released_promoted_drilled_rolled_back_and_forward(
    with_live: Callable[..., None], reads: Callable[[str], None]
) -> None:
    async def body(live: Live) -> None:
        services = live.services
        promoted = await live.roll_out(services.request(2, 1), "promoted")
        assert promoted.figures["canary_requests"] >= 60
        drilled = await live.roll_out(services.request(1, 2, "failing", max_seconds=40), "rolled_back")
        began = time.monotonic()
        back = await live.roll_out(RolloutRequest(id="back", kind="rollback", target=TARGET), "promoted")
        assert time.monotonic() - began < 10
        assert back.champion.release.version == "1"
        await live.roll_out(RolloutRequest(id="forth", kind="rollback", target=TARGET, version="2"), "promoted")
        await live.serves(2)
        await live.nobody_noticed()
        for status in (promoted, drilled):
            again = [sys.executable, "-m", "jobs.serving.canary", "replay", status.evidence]
            replayed = subprocess.run(again, capture_output=True, text=True)
            assert replayed.returncode == 0, replayed.stderr
            assert "every decision the same" in replayed.stdout
        reads(drilled.reasons[0])

    with_live(body)


def killed(what: str, then: str) -> pytest.MarkDecorator:
    return scenario(given="a canary with traffic", when=f"{what} is killed, and started again", then=then)


@pytest.mark.parametrize(
    ("victim", "restarts"),
    [
        pytest.param(
            "canary",
            1,
            marks=killed("the controller", "no client notices, and the rollout begins again and is promoted"),
        ),
        pytest.param(
            "router", 0, marks=killed("the router", "the rollout ends, and one whole release has all traffic")
        ),
        pytest.param("triton", 1, marks=killed("Triton", "the rollout ends, and one whole release has all traffic")),
    ],
)
def test_what_is_killed_comes_back_whole(
    with_live: Callable[..., None], reads: Callable[[str], None], victim: str, restarts: int
) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        services.kill(victim)
        services.start(victim)
        status = await live.ended(rollout, "promoted", restarts)
        await live.serves(2)
        if victim == "canary":
            await live.nobody_noticed()
        reads(next(note.message for note in status.notes if "begins again" in note.message or status.ended))

    with_live(body)
