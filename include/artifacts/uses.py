"""Which run used which artifact, and when: what the registry and the lineage cannot say.

Beside the artifacts, below the store's root::

    uses/<artifact>/<run key>     empty; its time is when that run last planned with the artifact
    runs/<run key>.json           the run's own names, once a run

A use is noted before the artifact's manifest is read. `Store.remove` removes the manifest first and then reads the
uses again, so that one of the two always sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from include.artifacts.naming import NAME_DIGITS, digest
from include.artifacts.store import USES, Store
from include.model import Model

RUNS = "runs"


class Run(Model):
    """A run of a DAG, by Airflow's own names."""

    dag_id: str
    run_id: str

    @property
    def key(self) -> str:
        """The run's name in a path, whatever characters its own name has."""
        return digest([self.dag_id, self.run_id])[:NAME_DIGITS]


def note_uses(store: Store, run: Run, names: Iterable[str]) -> None:
    """Note that `run` uses the artifacts called `names` from now on, whether they exist already or not."""
    store.create(f"{RUNS}/{run.key}.json", run.model_dump_json().encode())
    for name in names:
        store.touch(f"{USES}/{name}/{run.key}")


def recorded_runs(store: Store) -> list[Run]:
    """Return every run that ever noted a use, and whose record was not swept."""
    return [
        Run.model_validate_json(store.read_file(entry.path))
        for entry in store.listing(RUNS)
        if entry.path.endswith(".json")
    ]
