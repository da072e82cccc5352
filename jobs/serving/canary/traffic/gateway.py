"""A gateway as traffic router: the weights of one named rule of a Gateway API HTTPRoute.

Two routers stand behind the rule, one an arm. The stable one sends everything to the champion. The canary's sends what
the gateway gives it to the canary, and to the champion where the canary fails, or where the controller's lease has
lapsed: the lease is with that router, since a gateway has none. So after a controller died the weights stay, and the
canary gets no traffic all the same; the next controller sets the weights back. The rule's weights hold for all that
it matches, so a route serves one target.

The canary's router may be unreachable: then the champion takes all of the traffic, for which the route and the stable
router are enough.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

from jobs.serving.canary.traffic.http_route import TOTAL_WEIGHT, HTTPRoute
from jobs.serving.canary.traffic.interface import TIMEOUT_SECONDS, ConflictError, RouterError, TrafficRouter, releases
from jobs.serving.log import log
from jobs.serving.router.routes import Split

T = TypeVar("T")

_KEPT_SAMPLES = 4096
_TIMES = ("first_token", "total")


class _Change(NamedTuple):
    """One change of the target's route, and its generation with each router; None where a router did not take it."""

    split: Split
    stable: int
    canary: int | None


class Gateway:
    """Two routers and a route, used as one traffic router.

    Its counts and samples begin anew with each restart of the controller and of a router, which `boot` identifies.
    """

    def __init__(self, stable: TrafficRouter, canary: TrafficRouter, route: HTTPRoute, target: str, boot: str) -> None:
        self._stable = stable
        self._canary = canary
        self._route = route
        self._target = target
        self._boot = boot
        self._restarts = 0
        self._boots: tuple[str, str | None] | None = None
        self._changes: list[_Change] = []
        self._samples: deque[dict[str, Any]] = deque(maxlen=_KEPT_SAMPLES)
        self._read = [0, 0]
        self._sequence = self._lost = 0
        self._unreachable_reason = ""

    async def state(self) -> dict[str, Any]:
        stable, canary = await asyncio.gather(self._stable.state(), self._answered(self._canary.state()))
        boot = self._begin(stable["boot"], canary["boot"] if canary else None)
        on_stable = stable["targets"].get(self._target)
        if on_stable is None:
            return {"boot": boot, "targets": {}}
        # Before this controller has set a route, no counts can be attributed to it.
        asked = self._changes[-1].split if self._changes else Split()
        on_canary = canary["targets"].get(self._target) if canary else {**asked.model_dump(), "lease": {"holder": None}}
        weight = await self._route.weight()
        if abs(weight - asked.weight) * TOTAL_WEIGHT < 0.5:
            weight = asked.weight
        if canary and on_canary and on_canary["canary"] and not on_canary["weight"]:
            weight = 0.0  # the lease has lapsed: the canary's router sends its requests to the champion
        # A change that the canary's router missed while it was unreachable has to be sent to it again.
        in_sync = self._changes and (not canary or (on_canary and on_canary["champion"] == on_stable["champion"]))
        shown = {
            "generation": len(self._changes),
            "champion": on_stable["champion"] if in_sync else None,
            "canary": on_canary["canary"] if on_canary else None,
            "weight": weight,
            "sample": on_stable["sample"],
            "slow_seconds": on_stable["slow_seconds"],
            "lease": on_canary["lease"] if on_canary else {"holder": None},
        }
        return {"boot": boot, "targets": {self._target: shown}}

    async def routed(self) -> dict[str, set[str]]:
        stable, canary, weight = await asyncio.gather(
            self._stable.state(), self._answered(self._canary.state()), self._route.weight()
        )
        if canary is None and weight:
            raise RouterError(
                f"{weight:.1%} of the traffic goes to the canary's router, which cannot be reached "
                f"({self._unreachable_reason})"
            )
        return releases(stable, canary) if canary else releases(stable)

    def refuses(self, target: str) -> str | None:
        if target == self._target:
            return None
        return (
            f"the gateway's rule leads the traffic of {self._target}, not of {target}: release {target} to a serving "
            "side of its own, or run this one without --gateway-route"
        )

    async def put(self, target: str, route: Split, generation: int, holder: str) -> dict[str, Any]:
        if refusal := self.refuses(target):
            raise ConflictError(refusal)
        if not route.weight:
            # First of all: this takes the traffic from a canary whose router is unreachable.
            await self._route.set(0.0)
        now = await self.state()
        if generation != len(self._changes):
            raise ConflictError(f"{target} is at generation {len(self._changes)}, the change is based on {generation}")
        whole = route.model_copy(update={"weight": 1.0 if route.weight else 0.0})
        champion_only = route.model_copy(update={"canary": None, "weight": 0.0})
        on_canary: int | None
        if route.weight:
            on_canary = await self._put(self._canary, whole, holder)
            on_stable = await self._put(self._stable, champion_only, holder)
            await self._route.set(route.weight)
        else:
            on_stable = await self._put(self._stable, champion_only, holder)
            on_canary = await self._answered(self._put(self._canary, whole, holder))
        self._changes.append(_Change(route, on_stable, on_canary))
        return {**route.model_dump(), "generation": len(self._changes), "boot": now["boot"]}

    async def delete(self, target: str) -> None:
        await self._route.set(0.0)
        await asyncio.gather(self._stable.delete(target), self._canary.delete(target))
        self._changes.clear()
        self._restarts += 1

    async def lease(self, target: str, holder: str, seconds: float) -> None:
        """Renew the lease; where the canary's router is unreachable, set its weight to 0, as no gateway does itself.

        Args:
            seconds: how long the lease lasts.

        Raises:
            ConflictError: another controller holds the lease.
            RouterError: the canary's router does not answer.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._canary.lease(target, holder, seconds)
        except ConflictError:
            raise
        except (RouterError, TimeoutError) as error:
            await self._route.set(0.0)
            raise RouterError(f"the canary's router renews no lease: {_message(error)}") from None

    async def release(self, target: str, holder: str) -> None:
        await self._canary.release(target, holder)

    async def counts(self, target: str) -> dict[str, Any]:
        has_traffic = bool(self._changes and self._changes[-1].split.weight)

        async def canary_counts() -> dict[str, Any] | None:
            counts = self._canary.counts(target)
            return await (counts if has_traffic else self._answered(counts))

        stable, canary = await asyncio.gather(self._stable.counts(target), canary_counts())
        boot = self._begin(stable["boot"], canary["boot"] if canary else None)
        canary_generations = canary["generations"] if canary else ()
        parts = []
        for number, change in enumerate(self._changes, 1):
            on_stable = [part for part in stable["generations"] if part["generation"] == change.stable]
            on_canary = [part for part in canary_generations if part["generation"] == change.canary]
            # Without a lease the canary's router sends its share to the champion.
            leased = [part for part in on_canary if part["weight"]]
            unleased = [part for part in on_canary if not part["weight"]]
            weight = change.split.weight if leased else 0.0
            common = {"generation": number, "slow_seconds": change.split.slow_seconds.model_dump()}
            arms = {"champion": _sum(on_stable, "champion"), "canary": _sum(leased, "canary")}
            if not leased:
                arms["champion"] = _sum([*on_stable, *unleased], "champion")
            parts.append({**common, "weight": weight, **arms})
            if leased and unleased:
                parts.append({**common, "weight": 0.0, "champion": _sum(unleased, "champion"), "canary": None})
        return {"boot": boot, "generations": parts}

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        replies = await asyncio.gather(
            *(
                router.samples(target, read)
                for router, read in zip((self._stable, self._canary), self._read, strict=True)
            )
        )
        boot = self._begin(*(reply["boot"] for reply in replies))
        for which, reply in enumerate(replies):
            own = {change[1 + which]: number for number, change in enumerate(self._changes, 1)}
            self._lost += reply["lost"]
            for sample in reply["samples"]:
                self._read[which] = sample["seq"]
                if sample["generation"] in own:
                    self._sequence += 1
                    self._samples.append({**sample, "seq": self._sequence, "generation": own[sample["generation"]]})
        return {"boot": boot, "samples": [one for one in self._samples if one["seq"] > after], "lost": self._lost}

    def _begin(self, stable: str, canary: str | None) -> str:
        """Return the boot, which is a new one where a router has restarted; then counts and samples begin anew.

        Args:
            stable, canary: the routers' boots; None stands for an unreachable router, which counts as not restarted.
        """
        if canary is None and self._boots:
            canary = self._boots[1]
        if self._boots != (stable, canary):
            self._boots = (stable, canary)
            self._restarts += 1
            self._changes.clear()
            self._samples.clear()
            self._read = [0, 0]
            self._sequence = self._lost = 0
        return f"{self._boot}.{self._restarts}"

    async def _answered(self, asked: Awaitable[T]) -> T | None:
        """Return the answer of the canary's router, None where it gives none in time."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await asked
        except (RouterError, TimeoutError) as error:
            problem = _message(error)
            if problem != self._unreachable_reason:
                log("canary_router_unreachable", error=problem)
            self._unreachable_reason = problem
            return None
        self._unreachable_reason = ""
        return answer

    async def _put(self, router: TrafficRouter, split: Split, holder: str) -> int:
        """Set the route of one router; return its generation afterwards."""
        found = (await router.state())["targets"].get(self._target)
        put = await router.put(self._target, split, found["generation"] if found else 0, holder)
        return put["generation"]


def _message(error: Exception) -> str:
    return str(error) or f"no answer within {TIMEOUT_SECONDS:.0f} s"


def _sum(parts: list[dict[str, Any]], arm: str) -> dict[str, Any] | None:
    """Return an arm's counts, summed over parts that count requests to the same release."""
    counts = [part[arm] for part in parts if part[arm]]
    if not counts:
        return None
    numbers = {key: sum(one[key] for one in counts) for key in ("finished", "failed", "slow", "in_flight")}
    return {"release": counts[0]["release"], **numbers, **{kind: _histogram(counts, kind) for kind in _TIMES}}


def _histogram(counts: list[dict[str, Any]], kind: str) -> list[tuple[float | None, int]]:
    found: Counter[float | None] = Counter()
    for one in counts:
        for bound, number in one[kind]:
            found[bound] += number
    return sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0.0))
