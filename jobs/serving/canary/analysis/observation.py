"""The counts of one rollout, gathered from the router at each analysis run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.judge import Arm, Generation
from jobs.serving.canary.analysis.quality import Checker
from jobs.serving.canary.traffic.interface import TrafficRouter


@dataclass
class _AnswersRead:
    """Numbers of answers read under one generation, by arm."""

    sampled: dict[str, int] = field(default_factory=lambda: {"champion": 0, "canary": 0})
    bad: dict[str, int] = field(default_factory=lambda: {"champion": 0, "canary": 0})


class Observation:
    """Counts of a target's requests since the rollout began, by generation.

    The router counts in memory: after its restart (another boot) it begins at 0, and what was last seen of the former
    boot stays. Requests without a canary, or with no weight in force, are no evidence on it and are left out.
    """

    def __init__(
        self,
        router: TrafficRouter,
        target: str,
        release: str,
        policy: CanaryPolicy,
        checker: Checker,
        counted_from: tuple[str, int],
        attempt_from: tuple[str, int],
        carried: tuple[Generation, ...] = (),
    ) -> None:
        """
        Args:
            counted_from: boot and generation of the router when the rollout began: later ones are its own.
            attempt_from: the same when it began at its first step for the last time.
            carried: what was known before that.
        """
        self._router = router
        self._target = target
        self._release = release
        self._policy = policy
        self._checker = checker
        self._counted_from = counted_from
        self._attempt_from = attempt_from
        self._known = {part.key: part.model_copy(update={"current": False}) for part in carried}
        self._boot: str | None = None
        self._after = 0
        self._read: dict[int, _AnswersRead] = {}

    async def update(self) -> None:
        """Read what the router has counted and sampled since.

        Raises:
            RouterError: the router does not answer.
        """
        counts = await self._router.counts(self._target)
        boot = counts["boot"]
        if boot != self._boot:
            self._boot, self._after, self._read = boot, 0, {}
        await self._read_samples(boot)
        for part in counts["generations"]:
            if self._is_own(boot, part):
                read = self._read.get(part["generation"], _AnswersRead())
                generation = Generation(
                    key=f"{boot}:{part['generation']}",
                    step=self._policy.steps.index(part["weight"]),
                    weight=part["weight"],
                    current=is_after(self._attempt_from, boot, part),
                    latency_judged=part["slow_seconds"]["total"] is not None,
                    champion=_arm(part["champion"], read, "champion"),
                    canary=_arm(part["canary"], read, "canary"),
                )
                self._known[generation.key] = generation

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Cumulative counts of all generations that are known by now."""
        return tuple(self._known.values())

    async def _read_samples(self, boot: str) -> None:
        while True:
            reply = await self._router.samples(self._target, self._after)
            if reply["boot"] != boot or not reply["samples"]:
                return
            for sample in reply["samples"]:
                read = self._read.setdefault(sample["generation"], _AnswersRead())
                read.sampled[sample["arm"]] += 1
                read.bad[sample["arm"]] += self._checker.is_bad(sample)
                self._after = sample["seq"]

    def _is_own(self, boot: str, part: dict[str, Any]) -> bool:
        canary = part["canary"]
        if canary is None or canary["release"] != self._release or part["weight"] not in self._policy.steps:
            return False
        return is_after(self._counted_from, boot, part)


def in_flight(counts: dict[str, Any], release: str) -> int:
    """Return the number of requests that a release has not ended yet."""
    arms = [part[arm] for part in counts["generations"] for arm in ("champion", "canary") if part[arm]]
    return sum(arm["in_flight"] for arm in arms if arm["release"] == release)


def is_after(since: tuple[str, int], boot: str, part: dict[str, Any]) -> bool:
    """Return whether a part of the router's counts is later than a boot and generation of it."""
    return boot != since[0] or part["generation"] > since[1]


def _arm(counts: dict[str, Any], read: _AnswersRead, arm: str) -> Arm:
    return Arm(
        finished=counts["finished"],
        failed=counts["failed"],
        slow=counts["slow"],
        sampled=read.sampled[arm],
        bad=read.bad[arm],
    )
