"""What was announced and is to start a run of a DAG: durable records, asked first, that outlive the runs.

Airflow's asset events are hints and no queue: several can merge into one run, and one can wait for the next. So what an
event tells is written down before the event is sent, below the store's root, in a folder for each asset::

    announced/<asset>/pending/<key>.json        no run was started for it yet
    announced/<asset>/started/<run key>.json    this run was started; never removed
    announced/<asset>/refused/<key>.json        was pending, and cannot be read: a person decides; further ones of this
                                                key are <key>-2.json, <key>-3.json, …

Whoever works through the pending ones asks for the started one, starts the run under a fixed run id, creates the
started one, and removes the pending one, in this order. Each step can be repeated, so a crash between two of them loses
nothing; the second start of a run id is refused by Airflow while its row lives, and by the started one for ever. A pass
lists what is pending and nothing else: what was started before costs it nothing.
"""

from __future__ import annotations

import itertools
import json
from abc import abstractmethod
from datetime import UTC, datetime
from typing import ClassVar, Generic, TypeVar

from pydantic import ValidationError

from include.artifacts.naming import NAME_DIGITS, digest
from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.errors import ArtifactError, first_problem
from include.model import Model

ANNOUNCED = "announced"


class Announcement(Model):
    """One thing that is to start a run.

    Attributes:
        asset: name of the asset whose events announce it.
        identity: what distinguishes it from others; announced again with the same, it is the same.
    """

    asset: ClassVar[str]

    @property
    @abstractmethod
    def identity(self) -> list[str | None]: ...

    @property
    def key(self) -> str:
        """Its name in a path, whatever characters its identity has."""
        return digest(self.identity)[:NAME_DIGITS]


A = TypeVar("A", bound=Announcement)


class Announcements(Generic[A]):
    """The announcements of one kind in a store.

    Every method raises TryAgainError where the store cannot be reached, and ConfigurationError where it never can be.
    """

    def __init__(self, store: Store, kind: type[A]) -> None:
        self._store = store
        self._kind = kind
        self._folder = f"{ANNOUNCED}/{kind.asset}"

    def add(self, announcement: A) -> None:
        """Note durably that a run is to be started; nothing happens where that is pending already."""
        self._store.create(self._pending(announcement.key), announcement.model_dump_json().encode())

    def pending(self) -> list[str]:
        """Return the keys of the announcements without a run, oldest first."""
        files = [entry for entry in self._store.listing(f"{self._folder}/pending") if not entry.is_folder]
        named = [(entry.modified, entry.path.rpartition("/")[2]) for entry in files]
        # A hidden one is not written to its end.
        return [name.removesuffix(".json") for _, name in sorted(named) if not name.startswith(".")]

    def read(self, key: str) -> A | None:
        """Return a pending announcement; None where it is not pending any more.

        Raises:
            ArtifactError: it cannot be read as one.
        """
        try:
            return self._kind.model_validate_json(self._store.read_file(self._pending(key)))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ArtifactError(f"{self.place(key)} is damaged: {first_problem(error)}") from None

    def was_started(self, run: Run) -> bool:
        """Return whether the run was started for an announcement, at any time, whatever became of the run."""
        try:
            self._store.read_file(self._started(run))
        except FileNotFoundError:
            return False
        return True

    def note_start(self, run: Run, announcement: A) -> None:
        """Note for ever that the run was started."""
        record = {
            **run.model_dump(),
            "started": datetime.now(UTC).isoformat(),
            "announcement": announcement.model_dump(mode="json"),
        }
        self._store.create(self._started(run), json.dumps(record, indent=1).encode())

    def settle(self, key: str) -> None:
        """Remove a pending announcement whose run was started."""
        self._store.remove_path(self._pending(key))

    def refuse(self, key: str) -> str | None:
        """Set a pending announcement aside, so that no pass reads it again.

        What was refused before stays beside it: one of the two is what a person has corrected by now.

        Returns:
            Where it lies then; None where it is not pending any more.
        """
        try:
            data = self._store.read_file(self._pending(key))
        except FileNotFoundError:
            return None
        names = itertools.chain([key], (f"{key}-{number}" for number in itertools.count(2)))
        path = next(path for name in names if self._lies_at(path := f"{self._folder}/refused/{name}.json", data))
        self.settle(key)
        return f"{self._store.root}/{path}"

    def place(self, key: str) -> str:
        """Return where a pending announcement lies."""
        return f"{self._store.root}/{self._pending(key)}"

    def _lies_at(self, path: str, data: bytes) -> bool:
        """Write data to a path where nothing is; return whether the path holds these bytes then."""
        if self._store.create(path, data):
            return True
        try:
            return self._store.read_file(path) == data
        except FileNotFoundError:
            return False

    def _pending(self, key: str) -> str:
        return f"{self._folder}/pending/{key}.json"

    def _started(self, run: Run) -> str:
        return f"{self._folder}/started/{run.key}.json"
