"""Hours in minutes: a release, a drill or a rollback each minute, and nothing grows."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from include.release.rollouts import RolloutRequest
from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.serving.canary.services import TARGET, Clients, Services, running

MINUTES = float(os.environ.get("ANEMONE_SOAK_MINUTES") or 0)
EVERY_SECONDS = 60.0
SAMPLE_SECONDS = 5.0

GROWTH = {"router": 2.0, "controller": 1.0, "tritonserver": 3.0, "stubs": 3.0}
"""MB a minute at most, after the warm-up. The router keeps the latest 20,000 answers to be judged, which takes it some
time to fill; a load and an unload leave a little with tritonserver and its allocator."""

FOLDER_MB_A_RELEASE = 2.0


@dataclass
class Figures:
    """What was measured, a row a sample: seconds, and MB, open files and threads by process."""

    seconds: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in GROWTH})
    files: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in GROWTH})
    processes: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)
    folder: list[float] = field(default_factory=list)

    def sample(self, services: Services, began: float) -> None:
        stubs = descendants(services.processes["triton"].pid)
        pids = {
            "router": [services.processes["router"].pid],
            "controller": [services.processes["canary"].pid],
            "tritonserver": [services.processes["triton"].pid],
            "stubs": stubs,
        }
        self.seconds.append(time.monotonic() - began)
        for name, found in pids.items():
            # A stub that ends meanwhile has no more of anything.
            self.memory[name].append(sum(map(resident, found)))
            self.files[name].append(sum(map(open_files, found)))
        self.processes.append(len(stubs))
        self.shared.append(len(regions(services)))
        self.scratch.append(len(list(services.folder.glob(".scratch-*"))))
        self.folder.append(size(services.folder))

    def settled(self, values: list[float] | list[int]) -> list[float]:
        """Without the warm-up: the first quarter."""
        return [float(value) for value in values[len(values) // 4 :]]

    def slope(self, values: list[float] | list[int]) -> float:
        """Least squares, in units a minute."""
        found, times = self.settled(values), self.settled(self.seconds)
        middle, mean = sum(times) / len(times), sum(found) / len(found)
        spread = sum((at - middle) ** 2 for at in times)
        return 60 * sum((at - middle) * (value - mean) for at, value in zip(times, found, strict=True)) / spread

    def table(self) -> Iterator[str]:
        yield f"{'':14}{'first':>9}{'last':>9}{'most':>9}{'a minute':>10}"
        rows: dict[str, list[float] | list[int]] = {}
        rows |= {f"{name} MB": values for name, values in self.memory.items()}
        rows |= {f"{name} files"[:14]: values for name, values in self.files.items()}
        rows |= {"stubs": self.processes, "/dev/shm": self.shared, "scratch": self.scratch, "folder MB": self.folder}
        for name, values in rows.items():
            found = self.settled(values)
            yield f"{name:14}{found[0]:9.1f}{found[-1]:9.1f}{max(found):9.1f}{self.slope(values):+10.2f}"


def resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        threads = [thread.name for thread in Path(f"/proc/{pid}/task").iterdir() if thread.name != str(pid)]
        for thread in threads:
            children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        return []
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def regions(services: Services) -> list[Path]:
    prefix = json.loads((services.folder / "triton.json").read_text())["region"]
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def of_this_folder(folder: Path) -> list[str]:
    """Processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in arguments and int(process.name) != os.getpid():
            found.append(arguments)
    return found


def size(folder: Path) -> float:
    """Of the serving side's own files, in MB; the logs are not bounded by it, and left out."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and path.suffix != ".log" else 0
        except OSError:
            continue
    return total / 2**20


async def lead(services: Services, number: int) -> str:
    """The next thing in turn: a promotion, a drill that is rolled back, a rollback."""
    champion = (await services.target()).champion
    assert champion is not None
    live = int(champion.release.version)
    turn = number % 3
    name = f"soak-{number}"
    if turn == 2:
        request, wanted = RolloutRequest(id=name, kind="rollback", target=TARGET), "promoted"
    elif turn == 1:
        request = services.request(3 - live, live, "failing", name=name, max_seconds=45)
        wanted = "rolled_back"
    else:
        request, wanted = services.request(3 - live, live, name=name), "promoted"
    status = await services.roll_out(request)
    assert status.outcome == wanted, services.describe(status)
    return wanted


@pytest.mark.skipif(not MINUTES, reason="a soak takes its time: make soak MINUTES=20")
@scenario(
    given="a live release under constant traffic",
    when=f"for {MINUTES:g} minutes something is promoted, drilled and rolled back in turn, one a minute"
    if MINUTES
    else "for 20 minutes something is promoted, drilled and rolled back in turn, one a minute",
    then="no request fails, memory and open files stay flat, no process, shared memory or scratch folder is left",
)
def test_nothing_grows(
    tmp_path: Path,
    engines: dict[int, Artifact],
    reads: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    services, figures, releases, clients = Services(tmp_path, engines), Figures(), 0, None

    async def work() -> None:
        nonlocal releases, clients
        async with running(services):
            assert (await services.roll_out(services.request(1))).outcome == "promoted"
            async with Clients(services.router_port) as clients:
                began = time.monotonic()
                leading: asyncio.Task[str] | None = None
                while (now := time.monotonic() - began) < 60 * MINUTES or (leading and not leading.done()):
                    if now >= releases * EVERY_SECONDS and now < 60 * MINUTES and (not leading or leading.done()):
                        if leading:
                            leading.result()
                        leading = asyncio.create_task(lead(services, releases))
                        releases += 1
                    figures.sample(services, began)
                    await asyncio.sleep(SAMPLE_SECONDS)
                assert leading is not None
                leading.result()

    asyncio.run(work())
    assert clients is not None
    with capsys.disabled():
        print(f"\n{releases} rollouts, {clients.sent} requests, {len(clients.failed)} failed")
        print("\n".join(figures.table()))
    assert clients.failed == []
    for name, most in GROWTH.items():
        assert figures.slope(figures.memory[name]) <= most, f"{name} grows"
        assert figures.slope(figures.files[name]) <= 1.0, f"{name} opens files"
    assert max(figures.processes) <= 4 and max(figures.scratch) <= 1
    assert figures.folder[-1] - figures.folder[0] <= FOLDER_MB_A_RELEASE * releases
    assert of_this_folder(tmp_path) == [] and regions(services) == []
    slopes = ", ".join(f"{name} {figures.slope(values):+.2f}" for name, values in figures.memory.items())
    reads(f"{releases} rollouts, {clients.sent} requests, 0 failed; MB a minute: {slopes}")
