"""The controller's durable state: one JSON a target, one JSON a rollout, and the analysis log of each rollout.

Layout, below the folder `canary`::

    targets/<target>.json          the live release of a target, and former ones
    rollouts/<id>.json             a rollout: its request and its status
    rollouts/<id>.looks.jsonl      its analysis runs (see `jobs.serving.canary.analysis.runs`)
    lock                           held by the one controller of this folder

A rollout's record with the state `promoted` is the commit point: from then on the release is what the target is to
serve, and the target's own record follows.
"""

from __future__ import annotations

import fcntl
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from include import durable
from include.errors import ConfigurationError, DataError, first_problem
from include.model import Model
from include.release.rollouts import ControllerState, LiveRelease, RolloutRequest, RolloutStatus, TargetStatus
from jobs.serving.durably import DiskThread
from jobs.serving.log import log

M = TypeVar("M", bound=Model)


class TargetRecord(Model):
    """The durable state of a target.

    Attributes:
        champion: the live release; None where none was ever promoted.
        previous: former champions, newest first, each name once.
        warm_until: time until which the first of `previous` stays loaded.
        retiring: whether it is being taken out of service.
    """

    target: str
    champion: LiveRelease | None = None
    previous: tuple[LiveRelease, ...] = ()
    warm_until: datetime | None = None
    retiring: bool = False


class Rollout(Model):
    """A rollout: its request, and its present state.

    Attributes:
        sequence: number in the order of the requests.
        asked: time of the request.
        release: the release to make live, once it is resolved; its `since` is the time of its promotion.
        counted_from: the router's boot and generation when the rollout began; counts up to there are not its own.
        stop: the reason for rolling it back, if somebody asked for that.
        retired: its target was taken out of service, and it is kept only until its evidence is stored.
    """

    request: RolloutRequest
    status: RolloutStatus
    sequence: int
    asked: datetime
    release: LiveRelease | None = None
    counted_from: tuple[str, int] | None = None
    stop: str | None = None
    retired: bool = False

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def lacks_evidence(self) -> bool:
        """Whether it has ended and its evidence is still to be stored; version 0.1 left it at that."""
        return self.status.ended and self.status.evidence is None

    def forgettable(self, oldest: datetime) -> bool:
        """Return whether it ended before `oldest`, and its evidence was committed."""
        last = self.status.notes[-1].time if self.status.notes else self.asked
        return self.status.ended and self.status.evidence is not None and last < oldest


class Records:
    """Reads and writes the records below one folder.

    Attributes:
        disk: the thread that does so while the controller runs.
    """

    def __init__(self, folder: Path) -> None:
        self.disk = DiskThread()
        self._targets = folder / "targets"
        self._rollouts = folder / "rollouts"
        for place in (self._targets, self._rollouts):
            place.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")

    def lock(self) -> None:
        """Lock the folder against a second controller, for as long as this process lives.

        Raises:
            ConfigurationError: another one holds it.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"another controller works on {self._lock.name}: end it first, or choose another folder"
            ) from None

    def close(self) -> None:
        """Finish the writes that were begun, and unlock the folder."""
        self.disk.close()
        self._lock.close()

    def targets(self) -> list[TargetRecord]:
        """Return all targets, by name. Raises DataError where a record is damaged."""
        return [_read(path, TargetRecord) for path in sorted(self._targets.glob("*.json"))]

    def rollouts(self) -> list[Rollout]:
        """Return all rollouts, in the order of their requests.

        A damaged record is set aside: one rollout must not keep the controller from serving every target.
        """
        found = []
        for path in sorted(self._rollouts.glob("*.json")):
            try:
                found.append(_read(path, Rollout))
            except DataError as error:
                log("set_aside", error=error, now=durable.set_aside(path))
        return sorted(found, key=lambda rollout: rollout.sequence)

    def state(self) -> ControllerState:
        """Return what the next controller of this folder needs. Raises DataError where a record is damaged."""
        rollouts = [_read(path, Rollout) for path in sorted(self._rollouts.glob("*.json"))]
        return ControllerState(
            targets=tuple(
                TargetStatus(target=record.target, champion=record.champion, previous=record.previous)
                for record in self.targets()
            ),
            unfinished=tuple(rollout.request for rollout in rollouts if not rollout.status.ended),
        )

    async def save_target(self, record: TargetRecord) -> None:
        """Make a target's record durable. Raises OSError where the disk does not take it."""
        path, data = self._targets / f"{record.target}.json", record.model_dump_json(indent=1).encode()
        await self.disk.run(durable.replace, path, data)

    async def save_rollout(self, rollout: Rollout) -> None:
        """Make a rollout's record durable. Raises OSError where the disk does not take it."""
        path, data = self._rollouts / f"{rollout.id}.json", rollout.model_dump_json(indent=1).encode()
        await self.disk.run(durable.replace, path, data)

    def analysis_log(self, rollout: str) -> Path:
        """Return the path of a rollout's analysis log, under the name that version 0.1 gave it."""
        return self._rollouts / f"{rollout}.looks.jsonl"

    async def forget_rollout(self, rollout: str) -> None:
        """Remove a rollout's record and analysis log durably. Raises OSError where the disk does not take it."""
        await self.disk.run(durable.remove, self.analysis_log(rollout))
        await self.disk.run(durable.remove, self._rollouts / f"{rollout}.json")

    async def forget_target(self, target: str) -> None:
        """Remove a target's record durably. Raises OSError where the disk does not take it."""
        await self.disk.run(durable.remove, self._targets / f"{target}.json")


def _read(path: Path, model: type[M]) -> M:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged ({first_problem(error)}): "
            "restore it from a backup, or move it away and release what it named again"
        ) from None
