"""The keeper with small real web servers, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from include.events import parse_fields
from include.home import PROJECT
from include.laptop.components import exclusive
from include.laptop.home import make_home, run_folder
from include.laptop.keeper import Timing, keep
from include.laptop.services import Service
from include.laptop.serving import SupervisedService
from tests.ports import free_ports
from tests.waiting import wait_for

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
QUICK = Timing(poll=0.05, timeout=1.0, hung=2.0, start=60, first_pause=0.05, longest_pause=0.2, recovery=0.5)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    return make_home()


@pytest.fixture
def kept() -> Iterator[list[SupervisedService]]:
    services = []
    for name in ("one", "two"):
        (port,) = free_ports(1)
        command = (sys.executable, "-c", SERVER, str(port))
        services.append(SupervisedService(Service(run_folder(), name), command, f"http://127.0.0.1:{port}/"))
    yield services
    for each in services:
        each.service.stop(grace=0)


@contextmanager
def keeper_of(services: list[SupervisedService]) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=keep, args=(services, stopping, QUICK))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def keeping(kept: list[SupervisedService]) -> Iterator[list[SupervisedService]]:
    """Both services are up, and a keeper watches them."""
    with keeper_of(kept):
        wait_until(lambda: all(each.answers(1) for each in kept))
        yield kept


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    wait_for(condition, seconds, "what the keeper does", every=0.02)


def pid_of(kept: SupervisedService) -> int:
    try:
        return json.loads(kept.service.record.read_text())["pid"]
    except FileNotFoundError:
        return 0


def test_a_killed_service_is_started_again_and_the_other_left_alone(keeping: list[SupervisedService]) -> None:
    one, two = keeping
    for _ in range(3):
        former, other = pid_of(one), pid_of(two)
        os.kill(former, signal.SIGKILL)
        wait_until(lambda former=former: pid_of(one) not in (0, former) and one.answers(1))
        assert pid_of(two) == other


def test_a_stopped_service_counts_as_hung_and_is_replaced(
    kept: list[SupervisedService], capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = kept
    said = ""

    def events() -> list[str]:
        nonlocal said
        said += capfd.readouterr().out
        whole = said[: said.rfind("\n") + 1].splitlines()
        return [line.split()[0] for line in whole if parse_fields(line).get("service") == "one"]

    with keeper_of(kept):
        wait_until(lambda: events()[-1:] == ["alive"] and two.answers(1))
        former, other, began = pid_of(one), pid_of(two), time.monotonic()
        os.kill(former, signal.SIGSTOP)
        wait_until(lambda: events()[-4:] == ["hung", "down", "restarted", "alive"])
    assert time.monotonic() - began >= QUICK.hung
    assert pid_of(one) != former
    assert pid_of(two) == other
    assert not Path(f"/proc/{former}").exists()


def test_one_that_takes_long_to_start_is_left_its_time(kept: list[SupervisedService]) -> None:
    """It answers nothing for longer than what counts as hung, and was started only now."""
    one = kept[0]
    slow = f"import time\ntime.sleep({QUICK.hung + 1})\n{SERVER}"
    one.service.start([sys.executable, "-c", slow, one.command[-1]], os.environ)
    pid = pid_of(one)
    with keeper_of([one]):
        wait_until(lambda: one.answers(1))
    assert pid_of(one) == pid


def test_restarts_slow_down_and_say_why(kept: list[SupervisedService], capfd: pytest.CaptureFixture[str]) -> None:
    broken = SupervisedService(
        kept[0].service, (sys.executable, "-c", "raise SystemExit('error: no such port')"), kept[0].health
    )
    lines: list[str] = []

    def downs() -> list[str]:
        lines.extend(capfd.readouterr().out.splitlines())
        return [line for line in lines if line.startswith("down ")]

    with keeper_of([broken]):
        wait_until(lambda: len(downs()) >= 5)
    assert [parse_fields(line)["restart_in"] for line in downs()[:5]] == ["0.05", "0.1", "0.2", "0.2", "0.2"]
    assert parse_fields(downs()[2])["last_line"] == "error: no such port"


def test_nothing_is_started_while_another_starts_or_stops(keeping: list[SupervisedService]) -> None:
    one = keeping[0]
    with exclusive():
        former = pid_of(one)
        os.kill(former, signal.SIGKILL)
        wait_until(lambda: not one.service.running())
        # Longer than a keeper that did not heed the lock would take.
        time.sleep(1)
        assert pid_of(one) == former
    wait_until(lambda: pid_of(one) not in (0, former) and one.answers(1))


def test_a_killed_keeper_takes_nothing_with_it_and_the_next_one_takes_over(kept: list[SupervisedService]) -> None:
    code = (
        "import os, sys, threading; from pathlib import Path; from include.laptop.keeper import Timing, keep; "
        "from include.laptop.services import Service; from include.laptop.serving import SupervisedService; "
        "one = SupervisedService(Service(Path(sys.argv[1]), 'one'), tuple(sys.argv[3:]), sys.argv[2]); "
        "keep([one], threading.Event(), Timing(poll=0.05, first_pause=0.05))"
    )
    one = kept[0]
    command = [sys.executable, "-c", code, str(run_folder()), one.health, *one.command]
    keeper = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: one.answers(1))
        pid = pid_of(one)
    finally:
        keeper.kill()
        keeper.wait()
    assert one.service.running() and one.answers(1)

    with keeper_of([one]):
        wait_until(lambda: one.answers(1))
        assert pid_of(one) == pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid_of(one) not in (0, pid) and one.answers(1))


def test_the_keeper_as_a_service_ends_at_sigterm(own_home: Path) -> None:
    """Its services cannot start here (there is no environment for them), which it survives."""
    service = Service(run_folder(), "keeper")
    service.start([sys.executable, "-m", "include.laptop.keeper"], os.environ)
    try:
        wait_until(lambda: service.log.read_text().count("restarted ") >= 2)
        began = time.monotonic()
        assert service.stop(grace=60)
        assert time.monotonic() - began < 50
    finally:
        service.stop(grace=0)
        for name in ("triton", "router", "controller"):
            Service(run_folder(), name).stop(grace=0)
    lines = service.log.read_text().splitlines()
    assert lines[0].startswith("keeping ")
    assert not [line for line in lines if "Traceback" in line]
