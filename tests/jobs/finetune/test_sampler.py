"""The rows of a step do not depend on ranks or micro-batches."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from jobs.finetune.dataset import BLANK
from jobs.finetune.sampler import DataOrder, MicroBatchSamplerConfig

SHARES = [(1, 8), (1, 4), (1, 1), (2, 4), (2, 2), (4, 2), (4, 1), (8, 1)]


def steps(rows: int, ranks: int, micro_batch: int, seed: int | None, epoch: int, position: int) -> list[set[int]]:
    """What each step of the rest of an epoch trains on, over all ranks, of 8 rows a step."""
    config = MicroBatchSamplerConfig(batch=8, micro_batch=micro_batch, seed=seed)
    all_ranks = [config.build(dataset_len=rows, rank=rank, world_size=ranks) for rank in range(ranks)]
    for rank in all_ranks:
        rank.begin(epoch, position)
    micro_batches = [list(rank) for rank in all_ranks]
    assert len({len(found) for found in micro_batches}) == 1, "every rank has as many micro-batches"
    assert position or len(micro_batches[0]) == len(all_ranks[0])
    a_step = 8 // ranks // micro_batch
    found = []
    for start in range(0, len(micro_batches[0]), a_step):
        taken = [row for mine in micro_batches for part in mine[start : start + a_step] for row in part if row != BLANK]
        assert len(taken) == len(set(taken))
        found.append(set(taken))
    return found


@given(rows=st.integers(1, 60), share=st.sampled_from(SHARES), epoch=st.integers(0, 3), data=st.data())
def test_the_same_rows_for_any_number_of_ranks_and_any_micro_batch(
    rows: int, share: tuple[int, int], epoch: int, data: st.DataObject
) -> None:
    order = DataOrder(rows, 8, seed=5)
    position = data.draw(st.integers(0, order.steps - 1))
    got = steps(rows, *share, seed=5, epoch=epoch, position=position)
    assert got == [set(order.step(epoch * order.steps + k)) for k in range(position, order.steps)]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_row_once_an_epoch_shuffled_as_torch_does(epoch: int) -> None:
    order = DataOrder(57, 8, seed=3)
    assert sorted(order.epoch(epoch)) == list(range(57))
    sampler = DistributedSampler(range(57), num_replicas=1, rank=0, seed=3)
    sampler.set_epoch(epoch)
    assert order.epoch(epoch) == list(sampler)


def test_without_a_seed_the_files_order_is_kept() -> None:
    batches = MicroBatchSamplerConfig(batch=8, micro_batch=4, seed=None).build(dataset_len=9, rank=1, world_size=2)
    assert list(islice(batches, 3)) == [[1, 3, 5, 7], [BLANK]]
