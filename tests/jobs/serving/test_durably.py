"""What waits for a disk is told of every end that a write takes, however often the wait is cancelled."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from jobs.serving.durably import unbroken


def test_a_second_cancellation_does_not_leave_the_wait_either() -> None:
    async def work() -> None:
        written = asyncio.Event()
        done: list[str] = []

        async def write() -> None:
            await written.wait()
            done.append("written")

        caller = asyncio.create_task(unbroken(write()))
        for _ in range(3):
            await asyncio.sleep(0)
            caller.cancel()
        await asyncio.wait((caller,), timeout=0.05)
        assert not caller.done()
        written.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done == ["written"]

    asyncio.run(work())


def test_a_write_that_fails_after_its_caller_was_cancelled_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    unheard: list[dict[str, Any]] = []

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
        failing = asyncio.Event()

        async def write() -> None:
            await failing.wait()
            raise OSError("the disk is full")

        caller = asyncio.create_task(unbroken(write()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        failing.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        del caller
        gc.collect()

    asyncio.run(work())
    assert unheard == []
    assert 'fault error="OSError: the disk is full"' in capsys.readouterr().out


@pytest.mark.parametrize("error", [None, OSError("the disk is full")])
def test_a_caller_that_stays_gets_the_result_or_the_error(error: OSError | None) -> None:
    async def write() -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 3

    if error is None:
        assert asyncio.run(unbroken(write())) == 3
    else:
        with pytest.raises(OSError, match="the disk is full"):
            asyncio.run(unbroken(write()))
