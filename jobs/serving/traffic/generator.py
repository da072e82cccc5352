"""Open-loop load: requests arrive at their rate, however long the answers take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from pathlib import Path

import aiohttp

from include.events import format_event
from jobs.serving.traffic.client import Answer, send
from jobs.serving.traffic.counts import Counts
from jobs.serving.traffic.requests import Request, draw_requests

MAX_IN_FLIGHT = 1000
TIMEOUT = 60.0
"""Seconds that a client waits for the end of an answer."""

DRAIN = 10.0
"""Seconds at the end for the answers in flight; a request without one by then has failed."""

_WRITE_SECONDS = 1.0
_LOG_SECONDS = 10.0


async def generate(
    url: str, model: str, *, rate: float, seconds: float | None = None, seed: int = 0, out: Path | None = None
) -> Counts:
    """Send requests to `model` at `url`, `rate` a second (Poisson), until `seconds` are over or SIGTERM comes.

    Args:
        out: a JSON file with the counts so far, replaced atomically each second.
    """
    counts = Counts()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tasks: set[asyncio.Task[None]] = set()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:

        async def one(request: Request) -> None:
            counts.sent(request)
            began = time.perf_counter()
            try:
                answer = await send(session, url, request, TIMEOUT)
            except asyncio.CancelledError:  # at the end of this function only
                answer = Answer("", "unanswered", time.perf_counter() - began, "no end when the traffic ended")
            counts.ended(request, answer)

        reporter = asyncio.create_task(_report(counts, out))
        arrivals = random.Random(f"arrivals:{seed}")
        requests = draw_requests(model, seed)
        due = began = time.monotonic()
        while True:
            due += arrivals.expovariate(rate)
            if seconds is not None and due > began + seconds:
                break
            if await _stopped(stopping, due - time.monotonic()):
                break
            if len(tasks) >= MAX_IN_FLIGHT:
                counts.shed()
                continue
            task = asyncio.create_task(one(next(requests)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN)
        reporter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporter
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left)
    _write(counts, out)
    _log("ended", counts)
    return counts


async def _stopped(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait for the next arrival; return whether the end came first."""
    if seconds <= 0:
        # Late: the answers in flight need a turn, or a burst would starve them.
        await asyncio.sleep(0)
        return stopping.is_set()
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _report(counts: Counts, out: Path | None) -> None:
    logged = time.monotonic()
    while True:
        await asyncio.sleep(_WRITE_SECONDS)
        _write(counts, out)
        if time.monotonic() - logged >= _LOG_SECONDS:
            logged = time.monotonic()
            _log("traffic", counts)


def _write(counts: Counts, out: Path | None) -> None:
    if out is not None:
        draft = out.with_name(f".{out.name}.draft")
        draft.write_text(json.dumps(counts.as_dict(), ensure_ascii=False), encoding="utf-8")
        draft.replace(out)


def _log(event: str, counts: Counts) -> None:
    shown = counts.as_dict()
    fields = {key: shown[key] for key in ("sent", "answered", "failed", "unavailable", "empty", "in_flight")}
    fields |= {f"total_{name}": value for name, value in shown["total"].items()}
    if counts.last_failure:
        fields["last_failure"] = counts.last_failure
    print(format_event(event, fields), flush=True)
