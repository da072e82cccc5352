"""Two nodes as two jobs on this machine, each with scratch folders of its own; they share the store alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import ConfigurationError
from include.specs.base import Artifact
from include.specs.finetune import Config as Finetune
from jobs.finetune.node_group import join, join_timeout, stopping_seconds

Config = dict[str, Any]


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


@pytest.mark.parametrize(("rank", "other"), [(0, "node 1"), (1, "node 0")])
def test_a_node_that_never_comes_is_named(node: Callable, pair: Config, rank: int, other: str) -> None:
    job = node({**pair, "hang_seconds": 0.5}, rank)
    begun = time.monotonic()
    assert job.wait() == 75, job.output
    assert time.monotonic() - begun < 30
    assert other in job.error and "did not " in job.error and "within 2 s" in job.error
    assert not list(job.store.names(job.name))


def test_nodes_wait_for_a_machine_that_has_yet_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Finetune.model_construct(hang_seconds=60)
    assert join_timeout(config) == 300
    for given, expected in (("3000", 3000), ("200", 300)):
        monkeypatch.setenv("ANEMONE_GATHER_SECONDS", given)
        assert join_timeout(config) == expected


@pytest.mark.parametrize(("grace", "expected"), [(None, 120), ("900", 885), ("30", 15), ("15", 7.5)])
def test_ranks_save_within_the_pods_grace(monkeypatch: pytest.MonkeyPatch, grace: str | None, expected: float) -> None:
    if grace is not None:
        monkeypatch.setenv("ANEMONE_GRACE_SECONDS", grace)
    assert stopping_seconds() == expected


def test_what_only_one_node_cannot_read_is_the_verdict_of_both(
    node: Callable, pair: Config, make_artifact: Callable, data: Artifact
) -> None:
    first, second = node(pair, 0), node(pair, 1, data=Artifact(uri=data.uri, digest="0" * 64))
    assert (first.wait(), second.wait()) == (65, 65), first.output + second.output
    assert first.message == second.message
    assert first.manifest is None


@pytest.mark.remedy("set finetune.nodes: …, or correct the platform")
def test_a_process_by_itself_is_one_node() -> None:
    with pytest.raises(ConfigurationError, match=r"started as one of 1 ") as refused, join(asked(nodes=2)):
        pass
    nodes = int(re.search(r"set finetune\.nodes: (\d+), or correct the platform$", str(refused.value))[1])
    with join(asked(nodes=nodes)) as group:
        assert group.count == nodes


def asked(**values: int) -> Finetune:
    return Finetune.model_construct(**values)


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
