"""Trainings of several nodes, each node a job of its own on this machine; they share the store alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.finetune.plan import Plan
from tests.faults.jobs.network import OtherMachine, other_machine  # noqa: F401
from tests.faults.scenario import scenario

Config = dict[str, Any]


@scenario(
    given="a whole model that two nodes train with two ranks each, DDP or sharded",
    when="node 1 is told to stop (SIGTERM), and the next try runs on one node",
    then="both nodes end with 143, node 0 has saved for all, and one node goes on from there",
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_whole_model_is_written_by_node_0_alone_and_goes_on_in_other_shapes(
    start: Callable, node: Callable, pair: Config, reads: Any, strategy: str
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
    reads(first.error.removeprefix("error: "))


@scenario(
    given="a fine-tune on two nodes",
    when="node 1 is killed (SIGKILL)",
    then="node 0 ends with 75, names it, and leaves no rank behind",
)
def test_a_node_that_is_killed_ends_the_other_to_be_tried_again(node: Callable, pair: Config, reads: Any) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    ranks = first.ranks
    os.kill(second.pid, signal.SIGKILL)
    assert first.wait() == 75, first.output
    assert first.error.startswith(f"error: node 1 ({socket.gethostname()}) is gone: nothing was heard of it for ")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    reads(first.error.removeprefix("error: "))


@scenario(
    given="a fine-tune on two nodes",
    when="node 0 is killed (SIGKILL)",
    then="node 1 ends with 75 and names it",
)
def test_without_node_0_the_others_end(node: Callable, pair: Config, reads: Any) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait() == 75, second.output
    assert f"node 0 ({socket.gethostname()}) is gone: " in second.error
    reads(second.error.removeprefix("error: "))


@scenario(
    given="a fine-tune on two nodes, each with a network of its own",
    when="every packet to and from node 1 is lost",
    then="node 0 ends first, with 75, and names node 1; node 1 ends with 75 and says that it cannot reach node 0",
)
def test_a_node_whose_network_is_cut_is_the_one_to_blame(
    node: Callable,
    pair: Config,
    other_machine: OtherMachine,  # noqa: F811
    reads: Any,
) -> None:
    long, address = {**pair, "steps": 5000}, {"PET_MASTER_ADDR": other_machine.here}
    first = node(long, 0, more=address)
    with other_machine.entered():
        second = node(long, 1, more=address)
    first.wait_for("checkpoint step=4 ")
    other_machine.cut()
    assert first.wait() == 75, first.output
    assert second.runs, second.output
    host = socket.gethostname()
    assert first.error.startswith(f"error: node 1 ({host}) is gone: nothing was heard of it for ")
    assert second.wait() == 75, second.output
    assert second.error.startswith(f"error: node 1 ({host}) cannot reach node 0 ({host}) any more")
    reads(f"{first.message}; {second.message}")


@scenario(
    given="a fine-tune on two nodes",
    when="a rank of node 1 is killed (SIGKILL)",
    then="both nodes end with 75 and the same sentence",
)
def test_a_rank_that_is_killed_on_one_node_is_the_verdict_of_both(node: Callable, pair: Config, reads: Any) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    os.kill(second.ranks[0], signal.SIGKILL)
    assert (first.wait(), second.wait()) == (75, 75), first.output + second.output
    assert "rank 1 was killed (SIGKILL), and not by the kernel for want of memory" in first.error
    assert first.message == second.message
    reads(first.message)


@scenario(
    given="a fine-tune on two nodes",
    when="it diverges",
    then="both nodes end with 70 and the same sentence",
)
def test_a_divergence_is_the_verdict_of_both(node: Callable, pair: Config, reads: Any) -> None:
    diverging = {**pair, "learning_rate": 1e30, "validate_every": 12}
    first, second = node(diverging, 0), node(diverging, 1)
    assert (first.wait(), second.wait()) == (70, 70), first.output + second.output
    assert first.error.startswith("error: training diverged: the ")
    assert first.message == second.message
    reads(first.message)


@scenario(
    given="a fine-tune on two nodes",
    when="a rank of node 1 stops for good (SIGSTOP)",
    then="both nodes end with 75, name it, and have their own ranks' stacks in their logs",
)
def test_a_rank_that_hangs_is_named_by_both(node: Callable, pair: Config, reads: Any) -> None:
    slow = {**pair, "steps": 5000, "hang_seconds": 12, "checkpoint_every": 5000, "validate_every": 5000}
    first, second = node(slow, 0), node(slow, 1)
    first.wait_for("train step=10 ")
    (stopped,) = second.ranks
    os.kill(stopped, signal.SIGSTOP)
    assert (first.wait(), second.wait()) == (75, 75), first.output + second.output
    assert first.message.startswith("rank 1 of 2 hangs: ")
    assert "it is stopped by a signal" in first.message
    assert first.message == second.message
    assert "rank 0 (pid " in first.output and "rank 1 (pid " in second.output
    reads(first.message)


@scenario(
    given="a fine-tune on two nodes",
    when="memory runs out on node 1 alone",
    then="both go on with half the micro-batch, to the end",
)
def test_memory_that_runs_out_on_one_node_halves_the_micro_batch_of_both(
    node: Callable, pair: Config, reads: Any, monkeypatch: pytest.MonkeyPatch
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
    reads(next(line for line in second.output.splitlines() if line.startswith("out_of_memory")))


@scenario(
    given="a fine-tune on two nodes",
    when="node 1 is started once more while it runs",
    then="the second is refused with 75, and the training goes on undisturbed",
)
def test_a_node_that_is_started_twice_is_refused(node: Callable, pair: Config, reads: Any) -> None:
    first, second = node({**pair, "steps": 5000}, 0), node({**pair, "steps": 5000}, 1)
    first.wait_for("checkpoint step=4 ")
    again = node({**pair, "steps": 5000}, 1)
    assert again.wait() == 75, again.output
    assert "node 1 came twice" in again.error
    assert first.runs and second.runs
    reads(again.error.removeprefix("error: "))
