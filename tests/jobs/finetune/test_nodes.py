"""Two nodes as two jobs on this machine, each with scratch folders of its own; they share the store alone."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from include.specs.base import Artifact
from jobs.finetune import nodes
from jobs.finetune.plan import Plan
from tests.ports import free_home_port

Config = dict[str, Any]


@pytest.fixture
def pair(config: Config) -> Config:
    return {**config, "processes": 2, "nodes": 2, "local_batch_size": 4}


@pytest.fixture
def node(start: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Start node `rank` of two; both calls of a test belong together. A node is missed after five seconds."""
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 5.0)
    port = free_home_port()

    def begin(config: Config, rank: int, *, of: int = 2, more: dict[str, str] | None = None, **inputs: Any) -> Any:
        environment = {
            "PET_NNODES": str(of),
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        return start(config, {**environment, **(more or {})}, f"node-{rank}", **inputs)

    return begin


def test_two_nodes_train_like_two_processes_of_one(start: Callable, node: Callable, pair: Config) -> None:
    one = start({**pair, "nodes": 1})
    assert one.wait() == 0, one.output
    one.set_aside()
    first, second = node(pair, 0), node(pair, 1)
    assert first.name == one.name
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    assert first.curve() == one.curve()
    assert first.manifest.content_digest == one.manifest.content_digest
    assert "took_part node=1" in second.output
    assert len(list((Path(first.store.root.removeprefix("file://")) / first.name / "attempts").iterdir())) == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_whole_model_is_written_by_node_0_alone_and_goes_on_in_other_shapes(
    start: Callable, node: Callable, pair: Config, strategy: str
) -> None:
    """Two processes a node, so that shards lie within a node; stopped by SIGTERM to node 1, and resumed by one node."""
    large = {**pair, "method": "sft", "learning_rate": 0.01, "strategy": strategy, "processes": 4}
    large |= {"local_batch_size": 2, "steps": 300, "checkpoint_every": 1000, "validate_every": 20}
    first, second = node(large, 0), node(large, 1)
    first.wait_for("train step=10 ")
    os.kill(second.pid, signal.SIGTERM)
    assert (first.wait(), second.wait()) == (143, 143), first.output + second.output
    for job in (first, second):
        assert job.error.startswith("error: stopped on request (SIGTERM) after step ")
        assert "goes on from there" in job.error
    (saved,) = first.checkpoints
    assert saved >= 10
    alone = start({**large, "nodes": 1, "processes": 2})
    assert alone.name == first.name
    alone.wait_for(f"resumed step={saved}")
    alone.wait_for("train step=")


def test_a_node_that_is_killed_ends_the_other_to_be_tried_again(node: Callable, pair: Config) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    ranks = first.ranks
    os.kill(second.pid, signal.SIGKILL)
    assert first.wait() == 75, first.output
    assert first.error.startswith(f"error: node 1 ({socket.gethostname()}) is gone: nothing was heard of it for ")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_without_node_0_the_others_end(node: Callable, pair: Config) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait() == 75, second.output
    assert f"node 0 ({socket.gethostname()}) is gone: " in second.error


def test_a_rank_that_is_killed_on_one_node_is_the_verdict_of_both(node: Callable, pair: Config) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    os.kill(second.ranks[0], signal.SIGKILL)
    assert (first.wait(), second.wait()) == (75, 75), first.output + second.output
    assert "rank 1 was killed (SIGKILL), and not by the kernel for want of memory" in first.error
    assert first.told == second.told


@pytest.mark.parametrize(("rank", "other"), [(0, "node 1"), (1, "node 0")])
def test_a_node_that_never_comes_is_named(node: Callable, pair: Config, rank: int, other: str) -> None:
    job = node({**pair, "hang_seconds": 0.5}, rank)
    begun = time.monotonic()
    assert job.wait() == 75, job.output
    assert time.monotonic() - begun < 30
    assert other in job.error and "did not " in job.error and "within 2 s" in job.error
    assert not list(job.store.names(job.name))


def test_what_only_one_node_cannot_read_is_the_verdict_of_both(
    node: Callable, pair: Config, make_artifact: Callable, data: Artifact
) -> None:
    first, second = node(pair, 0), node(pair, 1, data=Artifact(uri=data.uri, digest="0" * 64))
    assert (first.wait(), second.wait()) == (65, 65), first.output + second.output
    assert first.told == second.told
    assert first.manifest is None


def test_a_divergence_is_the_verdict_of_both(node: Callable, pair: Config) -> None:
    diverging = {**pair, "learning_rate": 1e30, "validate_every": 12}
    first, second = node(diverging, 0), node(diverging, 1)
    assert (first.wait(), second.wait()) == (70, 70), first.output + second.output
    assert first.error.startswith("error: training diverged: the ")
    assert first.told == second.told


def test_a_rank_that_hangs_is_named_by_both(node: Callable, pair: Config) -> None:
    slow = {**pair, "steps": 5000, "hang_seconds": 12, "checkpoint_every": 5000, "validate_every": 5000}
    first, second = node(slow, 0), node(slow, 1)
    first.wait_for("train step=10 ")
    (stopped,) = second.ranks
    os.kill(stopped, signal.SIGSTOP)
    assert (first.wait(), second.wait()) == (75, 75), first.output + second.output
    assert first.told.startswith("rank 1 of 2 hangs: ")
    assert "it is stopped by a signal" in first.told
    assert first.told == second.told
    assert "rank 0 (pid " in first.output and "rank 1 (pid " in second.output


def test_memory_that_runs_out_on_one_node_halves_the_micro_batch_of_both(
    node: Callable, pair: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.finetune import recipe

    train = recipe.train

    def starving(plan: Plan, *arguments: Any) -> Any:
        if os.environ["RANK"] == "1" and plan.micro_batch == 4:
            torch.empty(1 << 60, dtype=torch.uint8)
        return train(plan, *arguments)

    monkeypatch.setattr(recipe, "train", starving)
    first, second = node(pair, 0), node(pair, 1)
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    for job in (first, second):
        assert "local_batch_size=4 next=2" in job.output
    assert first.manifest.metrics["local_batch_size"] == 2


def test_a_node_that_is_started_twice_is_refused(node: Callable, pair: Config) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    again = node({**pair, "steps": 5000}, 1)
    assert again.wait() == 75, again.output
    assert "node 1 came twice" in again.error
    assert first.runs and second.runs


@pytest.mark.parametrize(
    ("changes", "of", "message"),
    [
        ({}, 3, "finetune.nodes is 2, and this process was started as one of 3 (PET_NNODES)"),
        ({"nodes": 1}, 2, "finetune.nodes is 1, and this process was started as one of 2 (PET_NNODES)"),
    ],
)
def test_another_number_of_nodes_than_asked_for_is_refused(
    node: Callable, pair: Config, changes: Config, of: int, message: str
) -> None:
    job = node({**pair, **changes}, 0, of=of)
    assert job.wait() == 64, job.output
    assert message in job.error
