from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from include.laptop.services import Service
from tests.processes import alive
from tests.waiting import wait_for

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); time.sleep(60)"


@pytest.fixture
def service(tmp_path: Path):
    service = Service(tmp_path, "sleeper")
    yield service
    service.stop(grace=0)


def pid_of(service: Service) -> int:
    return json.loads(service.record.read_text())["pid"]


def wait_for_text(text: str, log: Path) -> None:
    wait_for(lambda: text in log.read_text(), 60, f"{text!r} in {log}", every=0.02)


def wait_for_end(service: Service) -> None:
    wait_for(lambda: not service.running(), 60, "the service to end", every=0.02)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_service_lives_on_under_its_own_session_until_it_is_stopped(service: Service) -> None:
    service.start(["sleep", "60"], os.environ)
    pid = pid_of(service)
    assert service.running()
    assert os.getsid(pid) == pid != os.getsid(0)
    assert service.stop(grace=5)
    assert not alive(pid)
    assert not service.record.exists()
    assert not service.stop(grace=5)


def test_what_it_prints_is_in_its_log(service: Service) -> None:
    service.start([sys.executable, "-c", "import sys; print('one'); print('two', file=sys.stderr)"], os.environ)
    wait_for_text("one", service.log)
    assert set(service.last_lines(2).splitlines()) == {"one", "two"}


def test_a_command_that_does_not_exist_is_not_running(service: Service) -> None:
    service.start(["/no/such/command"], os.environ)
    wait_for_text("No such file", service.log)
    wait_for_end(service)


def test_children_that_ignore_sigterm_end_too(service: Service) -> None:
    service.start([sys.executable, "-c", PARENT], os.environ)
    wait_for_text("deaf", service.log)
    child = children_of(pid_of(service))[0]
    service.stop(grace=0.2)
    assert not alive(child)


def test_children_of_a_killed_service_are_found_and_ended(service: Service) -> None:
    service.start([sys.executable, "-c", PARENT], os.environ)
    wait_for_text("deaf", service.log)
    child = children_of(pid_of(service))[0]
    os.kill(pid_of(service), signal.SIGKILL)
    wait_for_end(service)
    assert alive(child)
    assert service.stop(grace=0)
    assert not alive(child)


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}])
def test_a_stale_record_never_leads_to_a_stranger(service: Service, change: dict) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        service.start(["sleep", "60"], os.environ)
        record = json.loads(service.record.read_text())
        service.stop(grace=5)
        start = int(Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19])
        service.record.write_text(json.dumps({**record, "pid": stranger.pid, "start": start, **change}))
        assert not service.running()
        assert not service.stop(grace=0)
        assert alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[]"])
def test_a_damaged_record_is_no_service(service: Service, text: str) -> None:
    service.record.write_text(text)
    assert not service.running()
    assert not service.stop(grace=0)


def test_an_ignored_sigint_is_not_handed_down(service: Service) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        service.start(["sleep", "60"], os.environ)
    finally:
        signal.signal(signal.SIGINT, previous)
    os.kill(pid_of(service), signal.SIGINT)
    wait_for_end(service)
