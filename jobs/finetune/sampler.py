"""The rows that each step trains on: the same for any number of ranks and any size of micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch.utils.data import Sampler

from jobs.finetune.dataset import BLANK


@dataclass(frozen=True)
class DataOrder:
    """The order in which rows are trained on.

    Attributes:
        rows: number of rows.
        batch: rows of an optimizer step (of all ranks); the last step of an epoch has the rest.
        seed: of the shuffle, which differs from epoch to epoch; None keeps the file's order.
    """

    rows: int
    batch: int
    seed: int | None

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return ceil(self.rows / self.batch)

    def epoch(self, number: int) -> list[int]:
        """Return the indices of all rows in the order of epoch `number`, counted from 0."""
        if self.seed is None:
            return list(range(self.rows))
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + number)).tolist()

    def step(self, number: int) -> list[int]:
        """Return the row indices of optimizer step `number`, counted from 0 over all epochs."""
        epoch, position = divmod(number, self.steps)
        return self.epoch(epoch)[position * self.batch : (position + 1) * self.batch]


class MicroBatchSampler(Sampler[list[int]]):
    """One rank's micro-batches of an epoch. Rank r of n takes every n-th row of each step's rows, from r on.

    Where a step's rows cannot be shared out evenly, blank rows, on which nothing is trained, fill the gap: no row is
    left out because of the number of ranks.
    """

    def __init__(self, order: DataOrder, *, micro_batch: int, rank: int, ranks: int) -> None:
        self.order, self.micro_batch, self.rank, self.ranks = order, micro_batch, rank, ranks
        self._epoch = self._position = 0

    def __len__(self) -> int:
        """Return the number of micro-batches of a whole epoch."""
        return ceil(ceil(self.order.rows / self.ranks) / self.micro_batch)

    def begin(self, epoch: int, position: int) -> None:
        """Make the next iteration start at optimizer step `position` of epoch `epoch`."""
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.order.epoch(self._epoch)
        for start in range(self._position * self.order.batch, len(rows), self.order.batch):
            step = rows[start : start + self.order.batch]
            mine = (step + [BLANK] * (-len(step) % self.ranks))[self.rank :: self.ranks]
            for first in range(0, len(mine), self.micro_batch):
                yield mine[first : first + self.micro_batch]


@dataclass(frozen=True)
class MicroBatchSamplerConfig:
    """Builds the sampler where AutoModel asks for one (`nemo_automodel.components.datasets.loader`, 0.7.0)."""

    batch: int
    micro_batch: int
    seed: int | None

    def build(self, *, dataset_len: int, rank: int, world_size: int) -> MicroBatchSampler:
        order = DataOrder(dataset_len, self.batch, self.seed)
        return MicroBatchSampler(order, micro_batch=self.micro_batch, rank=rank, ranks=world_size)
