"""Durable writes of a service: on a thread of their own, in order, and finished once begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from jobs.serving.log import log

P = ParamSpec("P")
T = TypeVar("T")


class DiskThread:
    """One thread for everything that waits for a disk, so that the event loop never does.

    A flush to a slow disk takes seconds. On the event loop it would keep leases from being renewed and requests from
    being answered. There is one thread, so that writes reach the disk in the order in which they were asked for.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")

    async def run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a function on the thread, after all earlier ones; return what it returns, and raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*arguments, **options))

    def close(self) -> None:
        """Wait for what was begun, and end the thread."""
        self._executor.shutdown()


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Run work to its end, however often the caller is cancelled meanwhile; a cancellation is raised after it.

    A write cannot be taken back once a thread has it: what is in memory has to follow what is on the disk. The caller
    that was cancelled does not hear of an error of the work any more, so that it is logged.
    """
    task = asyncio.create_task(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            is_cancelled = True
    if not is_cancelled:
        return task.result()
    if not task.cancelled() and (error := task.exception()) is not None:
        log("fault", error=f"{type(error).__name__}: {error}")
    raise asyncio.CancelledError
