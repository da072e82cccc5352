"""What the triggerer watches: artifacts that a gate waits for, rollouts, and folders where data sets arrive."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from include.artifacts.manifest import FileEntry
from include.artifacts.naming import content_digest, file_digest
from include.artifacts.store import Store
from include.errors import AnemoneError, TryAgainError
from include.events import format_event
from include.platforms import current_platform
from operators.serving import Controller, news
from operators.store import store_of

_WATERMARK = "announced"
_LEAST_SECONDS = 5.0
"""The executor tells the scheduler of a deferred task's end of process up to a few seconds late; a task that has been
resumed by then would be taken for one that failed, and retried (airflow 3.3.2)."""

_SAVE_AFTER_SECONDS = 30.0
"""An event is in Airflow's database some time after it was given away; only then may the watermark pass it."""

_ABORT_TRIES = 5
_ABORT_PAUSE_SECONDS = 3.0
"""Together less than the 30 s that Airflow gives `on_kill`."""


class ArtifactTrigger(BaseTrigger):
    """Fires once the artifact at `uri` is committed."""

    def __init__(self, *, uri: str, poll_seconds: float = 5.0) -> None:
        super().__init__()
        self.uri = uri
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.triggers.ArtifactTrigger", {"uri": self.uri, "poll_seconds": self.poll_seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        store, name = store_of(self.uri)
        while not await asyncio.to_thread(self._there, store, name):
            await asyncio.sleep(self.poll_seconds)
        yield TriggerEvent({"artifact": self.uri})

    def _there(self, store: Store, name: str) -> bool:
        try:
            return store.manifest(name) is not None
        except TryAgainError as error:
            self.log.warning("%s", error)
            return False


class RolloutTrigger(BaseTrigger):
    """Fires once a rollout has ended, or cannot be followed any more, and tells its notes until then.

    The event is {"rollout": id, "told": how many notes the log has, "trouble": why it cannot be followed, or None}. A
    controller that is away is waited for, up to the platform's `serving.unreachable_seconds`.

    Args:
        rollout: id. `told`: how many of its notes the task has logged already.
        own: False: it is another task's, which is waited for; who ends this task leaves it alone, and its notes stand
            in the log of its own task.
    """

    def __init__(self, *, rollout: str, told: int = 0, own: bool = True) -> None:
        super().__init__()
        self.rollout = rollout
        self.told = told
        self.own = own

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.triggers.RolloutTrigger", {"rollout": self.rollout, "told": self.told, "own": self.own}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        serving = current_platform().serving
        controller = Controller(serving)
        clock = asyncio.get_running_loop().time
        told, stands, away_since = self.told, None, None
        began = clock()
        while True:
            try:
                status = await asyncio.to_thread(controller.status, self.rollout)
            except TryAgainError as error:
                if away_since is None:
                    away_since = clock()
                    self.log.warning("%s; waiting for it up to %.0f s", error, serving.unreachable_seconds)
                elif clock() - away_since > serving.unreachable_seconds:
                    yield self._event(told, str(error))
                    return
            except AnemoneError as error:
                yield self._event(told, str(error))
                return
            else:
                if status is None:
                    yield self._event(told, f"the canary controller does not know rollout {self.rollout} any more")
                    return
                away_since = None
                for line in news(status, told) if self.own else ():
                    self.log.info("%s", line)
                told = max(told, len(status.notes))
                if status.ended:
                    await asyncio.sleep(max(0.0, began + _LEAST_SECONDS - clock()))
                    yield self._event(told)
                    return
                if stands != (stands := (status.state, status.step, status.weight)):
                    where = {"state": status.state, "step": status.step, "weight": status.weight}
                    given = {key: value for key, value in where.items() if value is not None}
                    self.log.info("%s", format_event("rollout", {**given, **status.figures}))
            await asyncio.sleep(serving.poll_seconds)

    def _event(self, told: int, trouble: str | None = None) -> TriggerEvent:
        return TriggerEvent({"rollout": self.rollout, "told": told, "trouble": trouble})

    async def on_kill(self) -> None:
        """A person cleared the task or marked it: its rollout goes back. Stopping the triggerer comes not here."""
        if not self.own:
            return
        controller = Controller(current_platform().serving)
        for attempt in range(_ABORT_TRIES):
            try:
                refusal = await asyncio.to_thread(
                    controller.abort, self.rollout, "its task was cleared, or marked by a person"
                )
            except AnemoneError as error:
                self.log.error("rollout %s could not be aborted (try %d): %s", self.rollout, attempt + 1, error)
                await asyncio.sleep(_ABORT_PAUSE_SECONDS)
            else:
                if refusal is None:
                    self.log.info("rollout %s was told to go back", self.rollout)
                else:
                    self.log.warning("already promoted: %s; clear this task so that promote follows", refusal)
                return


class DatasetArrivalTrigger(BaseEventTrigger):
    """Fires for each JSONL file of a folder whose content was not announced before.

    A file is taken once its size and times have stayed the same for `settle_seconds`; the event's payload is
    {"source": path, "digest": content digest, "bytes": size}. The digest is the one that the ingested data set will
    have, so the same bytes under two names are announced once. What was announced is kept in the asset's state, so a
    restarted triggerer goes on where the last one stopped. It is kept half a minute late: a crash in between repeats an
    event, which whoever consumes it recognises by the digest, and never loses one.
    """

    def __init__(self, *, folder: str, settle_seconds: float, poll_seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self.settle_seconds = settle_seconds
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.triggers.DatasetArrivalTrigger", {
            "folder": self.folder,
            "settle_seconds": self.settle_seconds,
            "poll_seconds": self.poll_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        announced = await self._load()
        saved = len(announced)
        given: list[float] = []
        seen: dict[Path, tuple[tuple[int, ...], float]] = {}
        done: dict[Path, tuple[int, ...]] = {}
        while True:
            now = asyncio.get_running_loop().time()
            for path, version in (await asyncio.to_thread(_snapshot, Path(self.folder))).items():
                if done.get(path) == version:
                    continue
                known, since = seen.get(path, ((), now))
                if known != version:
                    seen[path] = (version, now)
                elif now - since >= self.settle_seconds:
                    try:
                        digest = await asyncio.to_thread(_dataset_digest, path)
                    except OSError as error:
                        self.log.warning("%s cannot be read and is left alone until it changes: %s", path, error)
                        done[path] = version
                        continue
                    if (await asyncio.to_thread(_snapshot, Path(self.folder))).get(path) != version:
                        continue
                    done[path] = version
                    if digest in announced:
                        self.log.info("%s holds a data set that was announced before (%s)", path, digest[:12])
                        continue
                    self.log.info("data set arrived: %s (%s)", path, digest[:12])
                    announced.append(digest)
                    given.append(now)
                    yield TriggerEvent({"source": str(path), "digest": digest, "bytes": version[0]})
            due = sum(now - at >= _SAVE_AFTER_SECONDS for at in given)
            if due:
                given, saved = given[due:], saved + due
                await self._save(announced[:saved])
            await asyncio.sleep(self.poll_seconds)

    async def _load(self) -> list[str]:
        if self.asset_state_store is None:
            return []
        return list(await self.asset_state_store.aget(_WATERMARK, default=[]))

    async def _save(self, announced: list[str]) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(_WATERMARK, announced)


def _snapshot(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Path → (size, inode, mtime, ctime) of the JSONL files there; hidden ones are still being written."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
            found[path] = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _dataset_digest(path: Path) -> str:
    """The content digest that `jobs.ingest` will give to this one file."""
    return content_digest([FileEntry(path="data.jsonl", size=path.stat().st_size, sha256=file_digest(path))])
