"""The controller's client against a real server: typed errors, and what leaves a release loaded for ever."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from include.specs.base import Artifact
from jobs.serving.triton.client import (
    READY,
    BadInputError,
    NotAvailableError,
    TimedOutError,
    TritonClient,
    TritonError,
)
from jobs.serving.triton.leftovers import clear_leftovers
from jobs.serving.triton.repository import install
from tests.jobs.serving.triton.conftest import Server, release, running
from tests.ports import free_ports

MESSAGES = [{"role": "user", "content": "네임스페이스 목록을 보여줘"}]


def test_a_release_goes_through_its_states(server: Server, engine: Artifact) -> None:
    name = install(server.folder, release(engine, 20))

    async def work(client: TritonClient) -> None:
        assert await client.live()
        assert (await client.states())[name] == ""
        await client.load(name)
        await client.load(name)
        assert (await client.states())[name] == READY
        answer = await client.generate(name, messages=MESSAGES, max_tokens=5)
        assert (answer.completion_tokens, answer.finish_reason) == (5, "length")
        assert (await client.generate(name, text="pods")).prompt_tokens == 3
        await client.unload(name)
        assert (await client.states())[name] == "UNAVAILABLE"
        await client.unload(name)
        with pytest.raises(NotAvailableError):
            await client.generate(name, text="pods")

    server.use(work)


def test_errors_have_types(server: Server, endless: Artifact) -> None:
    name = install(server.folder, release(endless, 21))
    server.load(name)

    async def work(client: TritonClient) -> None:
        with pytest.raises(BadInputError, match="empty"):
            await client.generate(name, text=" ")
        with pytest.raises(NotAvailableError, match="nowhere"):
            await client.generate("nowhere", text="a")
        with pytest.raises(TritonError, match="nowhere does not load"):
            await client.load("nowhere")
        with pytest.raises(TimedOutError, match="within"):
            await client.generate(name, messages=MESSAGES, timeout=0.01)
        await client.unload("nowhere")

    server.use(work)


def test_a_server_that_is_not_there() -> None:
    async def work() -> None:
        async with TritonClient(f"127.0.0.1:{free_ports(1)[0]}") as client:
            assert not await client.live()
            with pytest.raises(NotAvailableError):
                await client.states()
            with pytest.raises(NotAvailableError):
                await client.generate("a", text="a")

    asyncio.run(work())


def test_a_release_unloads_after_requests_that_timed_out(server: Server, engine: Artifact) -> None:
    """A cancelled gRPC stream would keep its request in flight for ever."""
    name = install(server.folder, release(engine, 22))
    server.load(name)

    async def work(client: TritonClient) -> None:
        timed_out = 0
        for index in range(40):
            try:
                await client.generate(name, messages=MESSAGES, timeout=0.001 + 0.0004 * index)
            except TimedOutError:
                timed_out += 1
        assert timed_out
        await client.unload(name, timeout=10)

    server.use(work)


def test_a_release_whose_process_was_killed_is_healed_by_a_reload(tmp_path: Path, engine: Artifact) -> None:
    name, other = (install(tmp_path, release(engine, version)) for version in (1, 2))
    with running(tmp_path) as server:
        server.load(name, other)

        async def work(client: TritonClient) -> None:
            [stub] = server.stubs(name)
            os.kill(stub, signal.SIGKILL)
            with pytest.raises(TritonError, match="not healthy"):
                await client.generate(name, messages=MESSAGES)
            assert (await client.states())[name] == READY, "Triton itself notices by now: reload() can be simpler"
            expected = await client.generate(other, messages=MESSAGES)
            await client.reload(name)
            assert await client.generate(name, messages=MESSAGES) == expected
            await client.unload(name, timeout=10)

        server.use(work)
        # What is left of the dead process would hold the server until its exit time-out.
        server.process.kill()
        server.process.wait()
    clear_leftovers(tmp_path)
