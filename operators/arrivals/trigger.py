"""Watches a folder in the triggerer for data sets that arrive."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from pydantic import JsonValue

from include.artifacts import naming
from include.artifacts.manifest import FileEntry
from include.artifacts.naming import content_digest, file_digest
from include.errors import AnemoneError, ArtifactError
from operators.arrivals.arrival import Arrival, arrivals_of_platform, platform_recipe

T = TypeVar("T", dict[str, str], list[str])

_FILES = "files"
"""Key of the asset's state: {name: version} of the files in the folder that were taken."""

_ANNOUNCED = "announced"
"""The same of version 0.1: digests of the data sets that had been announced, of which there is no other record."""


class DatasetArrivalTrigger(BaseEventTrigger):
    """Fires for each JSONL file of a folder whose content is to start a run of the recipe.

    A file is taken once its size and times have stayed the same for `settle_seconds`. What it holds is written down in
    the store before anything is told (`include.announcements`); then an event wakes who starts the run, with the
    payload {"source": path, "digest": content digest, "bytes": size, "recipe"}. The digest is the one that the ingested
    data set will have, so the same bytes under two names are one data set, which has one run with one recipe.

    Which files were taken is kept in the asset's state, so that a restarted triggerer does not hash them again, and a
    new recipe takes what arrives from then on. A file that cannot be read, or not be written down now, is tried again.

    Args:
        recipe: None: the platform's.
    """

    def __init__(self, *, folder: str, settle_seconds: float, poll_seconds: float, recipe: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.settle_seconds = settle_seconds
        self.poll_seconds = poll_seconds
        self.recipe = recipe

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.arrivals.trigger.DatasetArrivalTrigger", {
            "folder": self.folder,
            "settle_seconds": self.settle_seconds,
            "poll_seconds": self.poll_seconds,
            "recipe": self.recipe,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        taken = await self._load(_FILES, dict)
        former = frozenset(await self._load(_ANNOUNCED, list))
        # Its event may have died with another triggerer, and one event wakes for all.
        if (arrival := await asyncio.to_thread(self._oldest_pending)) is not None:
            yield TriggerEvent(arrival.model_dump())
        seen: dict[Path, _Seen] = {}
        while True:
            now = asyncio.get_running_loop().time()
            found = await asyncio.to_thread(_snapshot, Path(self.folder))
            before, taken = taken, {path.name: taken[path.name] for path in found if path.name in taken}
            seen = {
                path: file if (file := seen.get(path)) and file.version == version else _Seen(version, now)
                for path, version in found.items()
                if taken.get(path.name) != _text(version)
            }
            for path, file in seen.items():
                settled = now - file.since >= self.settle_seconds
                if settled and (arrival := await self._take(path, file, former)) is not None:
                    yield TriggerEvent(arrival.model_dump())
            taken |= {path.name: _text(file.version) for path, file in seen.items() if file.is_taken}
            if taken != before:
                await self._save(_FILES, taken)
            await asyncio.sleep(self.poll_seconds)

    async def _take(self, path: Path, file: _Seen, former: Collection[str]) -> Arrival | None:
        """Take a file, unless it changes meanwhile, or it or the store is away: it is tried again at the next look.

        Args:
            former: digests of what was announced before there were records of it.

        Returns:
            What has arrived; None where nothing has, or its run was started before.
        """
        try:
            if (digest := await self._digest(path, file)) is None:
                return None
            recipe = self.recipe or platform_recipe()
            arrival = Arrival(source=str(path), digest=digest, bytes=file.version[0], recipe=recipe)
            is_new = digest not in former and await asyncio.to_thread(self._announce, arrival)
        except (AnemoneError, OSError) as error:
            if not file.is_delayed:
                self.log.warning("%s has arrived and is announced later: %s", path, error)
                file.is_delayed = True
            return None
        file.is_taken = True
        if not is_new:
            self.log.info("%s holds a data set that was announced before (%s)", path, digest[:12])
            return None
        self.log.info("data set arrived: %s (%s)", path, digest[:12])
        return arrival

    async def _digest(self, path: Path, file: _Seen) -> str | None:
        """Return the digest of a file's content; None where it changed while it was read. Raises OSError."""
        if file.digest is None:
            digest = await asyncio.to_thread(_dataset_digest, path)
            if (await asyncio.to_thread(_snapshot, Path(self.folder))).get(path) == file.version:
                file.digest = digest
        return file.digest

    def _announce(self, arrival: Arrival) -> bool:
        """Note durably that the data set has arrived; return False where its run was started already."""
        announcements = arrivals_of_platform()
        if announcements.was_started(arrival.run):
            return False
        announcements.add(arrival)
        return True

    def _oldest_pending(self) -> Arrival | None:
        """Return the oldest arrival that can be read and whose run is to be started, if there is one."""
        try:
            announcements = arrivals_of_platform()
            for key in announcements.pending():
                with suppress(ArtifactError):
                    if (arrival := announcements.read(key)) is not None:
                        return arrival
        except (AnemoneError, OSError) as error:
            self.log.warning("what is announced already waits for the clock: %s", error)
        return None

    async def _load(self, key: str, kind: type[T]) -> T:
        stored = None if self.asset_state_store is None else await self.asset_state_store.aget(key, default=None)
        return stored if isinstance(stored, kind) else kind()

    async def _save(self, key: str, value: dict[str, str]) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(key, dict[str, JsonValue](value))


@dataclass
class _Seen:
    """A file that was not taken before this look: since when it has been as it is, and what became of it so far."""

    version: tuple[int, ...]
    since: float
    digest: str | None = None
    is_delayed: bool = False
    is_taken: bool = False


def _snapshot(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return {path: (size, inode, mtime, ctime)} of the JSONL files; hidden ones are still being written."""
    found: dict[Path, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        try:
            status = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and not path.name.startswith("."):
            found[path] = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _dataset_digest(path: Path) -> str:
    """Return the content digest that `jobs.ingest` will give to a data set of this one file."""
    return content_digest([FileEntry(path="data.jsonl", size=path.stat().st_size, sha256=file_digest(path))])


def _text(version: tuple[int, ...]) -> str:
    return naming.digest(list(version))[:12]
