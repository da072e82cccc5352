"""Counts become evidence: only a rollout's own, cumulative, and kept over a router's restart."""

from __future__ import annotations

import asyncio
from typing import Any

from include.release.rollouts import CanaryPolicy, Quality
from jobs.serving.canary.analysis.judge import Arm, Generation
from jobs.serving.canary.analysis.observation import Observation, in_flight
from jobs.serving.canary.analysis.quality import Checker

POLICY = CanaryPolicy(steps=(0.1, 0.5))


class Router:
    """What the router would answer."""

    def __init__(self, boot: str, generations: list[dict[str, Any]], samples: list[dict[str, Any]]) -> None:
        self.boot, self.generations, self.kept = boot, generations, samples

    async def counts(self, _target: str) -> dict[str, Any]:
        return {"boot": self.boot, "generations": self.generations}

    async def samples(self, _target: str, after: int) -> dict[str, Any]:
        return {"boot": self.boot, "samples": self.kept[after : after + 2]}


def generation(number: int, weight: float, canary: str | None = "v2", finished: int = 10) -> dict[str, Any]:
    counts = {"finished": finished, "failed": 1, "slow": 2, "in_flight": 3}
    arms = {"champion": {"release": "v1", **counts}, "canary": {"release": canary, **counts} if canary else None}
    return {"generation": number, "weight": weight, "slow_seconds": {"first_token": None, "total": 0.1}, **arms}


def sample(seq: int, number: int, arm: str, failed: bool = False) -> dict[str, Any]:
    answer = {"answer": "x", "failed": failed, "empty": False, "greedy": True, "messages": None}
    return {"seq": seq, "generation": number, "arm": arm, **answer}


def observe(router: Router, carried: tuple[Generation, ...] = (), attempt: int = 5) -> Observation:
    checker = Checker(Quality(), [])
    return Observation(router, "kubectl", "v2", POLICY, checker, ("b1", 3), ("b1", attempt), carried)


def test_only_generations_of_this_rollout_with_traffic_for_its_canary_count():
    router = Router(
        "b1",
        [
            generation(3, 0.5),
            generation(4, 0.1, canary=None),
            generation(5, 0.1),
            generation(6, 0.0),
            generation(7, 0.1),
            generation(7, 0.0),
            generation(8, 0.5, canary="v3"),
        ],
        [],
    )
    observation = observe(router)
    asyncio.run(observation.update())
    assert [(part.key, part.step, part.current) for part in observation.generations] == [
        ("b1:5", 0, False),
        ("b1:7", 0, True),
    ]


def test_samples_are_read_once_in_pages_and_counted_under_their_generation():
    kept = [
        sample(1, 7, "canary", failed=True),
        sample(2, 7, "champion"),
        sample(3, 7, "canary"),
        sample(4, 6, "canary"),
    ]
    router = Router("b1", [generation(7, 0.1)], kept)
    observation = observe(router)
    asyncio.run(observation.update())
    kept.append(sample(5, 7, "canary"))
    asyncio.run(observation.update())
    (part,) = observation.generations
    assert (part.canary.sampled, part.canary.bad) == (3, 1)
    assert (part.champion.sampled, part.champion.bad) == (1, 0)


def test_a_routers_restart_begins_new_counts_and_keeps_the_old():
    router = Router("b1", [generation(7, 0.1)], [sample(1, 7, "canary")])
    observation = observe(router)
    asyncio.run(observation.update())
    router.boot, router.generations, router.kept = "b2", [generation(7, 0.1, finished=4)], [sample(1, 7, "canary")]
    asyncio.run(observation.update())
    assert [(part.key, part.canary.finished) for part in observation.generations] == [("b1:7", 10), ("b2:7", 4)]
    assert [part.canary.sampled for part in observation.generations] == [1, 1]


def test_what_was_known_before_an_interruption_is_carried_and_not_counted_twice():
    carried = tuple(
        Generation(key=key, step=0, weight=0.1, champion=Arm(finished=9), canary=Arm(finished=1))
        for key in ("b0:2", "b1:5")
    )
    observation = observe(Router("b1", [generation(5, 0.1), generation(7, 0.1)], []), carried)
    asyncio.run(observation.update())
    assert [(part.key, part.current, part.canary.finished) for part in observation.generations] == [
        ("b0:2", False, 1),
        ("b1:5", False, 10),
        ("b1:7", True, 10),
    ]


def test_requests_in_flight_are_those_of_the_release_in_whatever_arm():
    counts = {"generations": [generation(6, 0.0, canary=None), generation(7, 0.1, canary="v1")]}
    assert in_flight(counts, "v1") == 9
    assert in_flight(counts, "v2") == 0
