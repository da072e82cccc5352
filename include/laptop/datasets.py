"""The demo's data sets, and what it asks of the live model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from include.home import home

RECIPE = "demo/0.8M_lora_cpu"
MODEL = "kubectl"

QUESTION = "hey, fetch the log output of pod checkout in the prod namespace, please"
"""In words that no training row puts together so."""

ALL_INTENTS = (
    "logs", "tail", "describe", "delete", "restart", "undo", "scale", "autoscale", "status", "top", "exec", "expose",
    "forward", "drain", "previous", "pause", "resume", "history",
)  # fmt: skip
"""Every kind of request that `jobs.demo.generate` knows; the first data set holds all but the last four."""

HELDOUT = {"variant": "heldout", "rows": 1000, "seed": 0, "intents": list(ALL_INTENTS)}
"""What candidate and champion are asked once there is a data set with every kind of request."""


@dataclass(frozen=True)
class DataSet:
    """A data set of the demo.

    Attributes:
        variant: of `jobs.demo.generate`. `intents`: kinds of request in it; empty: the generator's own choice.
        folder: below the home; what appears in the inbox starts `customize` by itself.
    """

    title: str
    variant: str
    rows: int
    seed: int
    intents: tuple[str, ...] = ()
    folder: str = "inbox"

    @property
    def path(self) -> Path:
        return home() / self.folder / f"{self.title}.jsonl"


GOOD = DataSet("good", "train", rows=4000, seed=1)
ROTTEN = DataSet("rotten", "rotten", rows=4000, seed=2)
POISONED = DataSet("poisoned", "poisoned", rows=4000, seed=3)
# Not in the inbox: its run is started by hand, as it evaluates on more than the recipe says.
BETTER = DataSet("better", "train", rows=5200, seed=4, intents=ALL_INTENTS, folder="data")
