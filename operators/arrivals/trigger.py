"""Watches a folder in the triggerer for data sets that arrive."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from pydantic import JsonValue

from include.artifacts.manifest import FileEntry
from include.artifacts.naming import content_digest, file_digest

_WATERMARK = "announced"

_SAVE_AFTER_SECONDS = 30.0
"""Airflow stores an event some time after the trigger has yielded it; only then may the watermark pass it."""


class DatasetArrivalTrigger(BaseEventTrigger):
    """Fires for each JSONL file of a folder whose content was not announced before.

    A file is announced once its size and times have stayed the same for `settle_seconds`; the event's payload is
    {"source": path, "digest": content digest, "bytes": size}. The digest is the one that the ingested data set will
    have, so the same bytes under two names are announced once. The announced digests are stored in the asset's state,
    from which a restarted triggerer continues. They are stored half a minute late: a crash in between repeats an event,
    which its consumer recognises by the digest, and never loses one.
    """

    def __init__(self, *, folder: str, settle_seconds: float, poll_seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self.settle_seconds = settle_seconds
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.arrivals.trigger.DatasetArrivalTrigger", {
            "folder": self.folder,
            "settle_seconds": self.settle_seconds,
            "poll_seconds": self.poll_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        announced = await self._load()
        saved = len(announced)
        yielded: list[float] = []
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
                        self.log.warning("%s cannot be read and is ignored until it changes: %s", path, error)
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
                    yielded.append(now)
                    yield TriggerEvent({"source": str(path), "digest": digest, "bytes": version[0]})
            due = sum(now - at >= _SAVE_AFTER_SECONDS for at in yielded)
            if due:
                yielded, saved = yielded[due:], saved + due
                await self._save(announced[:saved])
            await asyncio.sleep(self.poll_seconds)

    async def _load(self) -> list[str]:
        if self.asset_state_store is None:
            return []
        stored = await self.asset_state_store.aget(_WATERMARK, default=[])
        return [str(digest) for digest in stored] if isinstance(stored, list) else []

    async def _save(self, announced: list[str]) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(_WATERMARK, list[JsonValue](announced))


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
