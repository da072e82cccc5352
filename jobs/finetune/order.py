"""Which rows a step trains on: the same for any number of ranks and any size of micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch.utils.data import Sampler

from jobs.finetune.rows import BLANK


@dataclass(frozen=True)
class Order:
    """The rows in the order in which they are trained on.

    Attributes:
        rows: how many there are.
        batch: rows of an optimizer step (of all ranks); the last step of an epoch has the rest.
        seed: of the shuffle, which is another one every epoch; None keeps the file's order.
    """

    rows: int
    batch: int
    seed: int | None

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return ceil(self.rows / self.batch)

    def epoch(self, number: int) -> list[int]:
        """All rows, as epoch `number` takes them."""
        if self.seed is None:
            return list(range(self.rows))
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + number)).tolist()

    def step(self, number: int) -> list[int]:
        """The rows of optimizer step `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.steps)
        return self.epoch(epoch)[position * self.batch : (position + 1) * self.batch]


class MicroBatches(Sampler[list[int]]):
    """One rank's micro-batches of an epoch. Rank r of n takes every n-th row of each step's rows, from r on.

    Where a step's rows do not give every rank as many, blank rows fill up, on which nothing is trained: no row is
    left out for the number of ranks.
    """

    def __init__(self, order: Order, *, micro_batch: int, rank: int, ranks: int) -> None:
        self.order, self.micro_batch, self.rank, self.ranks = order, micro_batch, rank, ranks
        self._epoch = self._position = 0

    def __len__(self) -> int:
        """Micro-batches of a whole epoch."""
        return ceil(ceil(self.order.rows / self.ranks) / self.micro_batch)

    def begin(self, epoch: int, position: int) -> None:
        """Let the next iteration be epoch `epoch`, from its optimizer step `position` on."""
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.order.epoch(self._epoch)
        for start in range(self._position * self.order.batch, len(rows), self.order.batch):
            step = rows[start : start + self.order.batch]
            mine = (step + [BLANK] * (-len(step) % self.ranks))[self.rank :: self.ranks]
            for first in range(0, len(mine), self.micro_batch):
                yield mine[first : first + self.micro_batch]


@dataclass(frozen=True)
class MicroBatchesConfig:
    """AutoModel's way to be given a batch sampler (`nemo_automodel.components.datasets.loader`)."""

    batch: int
    micro_batch: int
    seed: int | None

    def build(self, *, dataset_len: int, rank: int, world_size: int) -> MicroBatches:
        order = Order(dataset_len, self.batch, self.seed)
        return MicroBatches(order, micro_batch=self.micro_batch, rank=rank, ranks=world_size)
