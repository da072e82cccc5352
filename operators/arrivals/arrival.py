"""A data set that has arrived, and the run of `customize` that it starts, of which there can be only one."""

from __future__ import annotations

from typing import Any, ClassVar

from include.announcements import Announcement, Announcements
from include.artifacts.naming import digest
from include.artifacts.uses import Run
from include.platforms import current_platform
from operators.store import platform_store

CUSTOMIZE = "customize"


class Arrival(Announcement):
    """A data set that has arrived, with the recipe that it is for.

    Attributes:
        source: path of the file. `digest`: of its content, as the ingested data set has it. `bytes`: its size.
    """

    asset: ClassVar[str] = "arrived_datasets"

    source: str
    digest: str
    bytes: int
    recipe: str

    @property
    def identity(self) -> list[str | None]:
        return [self.digest, self.recipe]

    @property
    def run(self) -> Run:
        """The run that it starts, by the data set's digest and the recipe."""
        return Run(dag_id=CUSTOMIZE, run_id=f"arrival__{self.digest[:16]}__{digest(self.recipe)[:8]}")

    @property
    def conf(self) -> dict[str, Any]:
        """The run's Params, and the digest that `ingest` is to find."""
        return {"data": self.source, "recipe": self.recipe, "digest": self.digest}


def arrivals_of_platform() -> Announcements[Arrival]:
    """Return the arrivals that are written down in the platform's store."""
    return Announcements(platform_store(current_platform()), Arrival)


def platform_recipe() -> str:
    """Return the platform's recipe for the data sets that arrive."""
    return current_platform().arrivals.recipe
