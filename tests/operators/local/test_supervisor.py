"""Whatever happens to the starter, nothing it started lives on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import alive
from tests.waiting import wait_for

# A job that, like torch's elastic agent, starts workers in sessions of their own, which ignore SIGTERM.
TREE = """
import os, signal, subprocess, sys, time
worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
workers = [subprocess.Popen([sys.executable, "-c", worker], start_new_session=True) for _ in range(2)]
def stop(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, {handler})
print("pids", os.getpid(), *(worker.pid for worker in workers), flush=True)
time.sleep(600)
"""


def supervise(program: str, grace: float = 5.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "operators.local.supervisor", "--grace", str(grace), "--"),
            *(sys.executable, "-c", program),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pids_of(process: subprocess.Popen[str]) -> list[int]:
    line = process.stdout.readline().split()
    assert line[0] == "pids"
    return [int(pid) for pid in line[1:]]


def wait_until_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(map(alive, pids)), 30, lambda: f"the end of {[pid for pid in pids if alive(pid)]}")


@pytest.mark.parametrize("ask", ["close", "SIGTERM"])
def test_a_request_lets_the_command_save_and_then_ends_everything(ask):
    process = supervise(TREE.format(handler="stop"))
    pids = pids_of(process)
    if ask == "close":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM)
    assert process.stdout.read().split() == ["saved"]
    assert process.wait(30) == 143
    wait_until_gone(pids)


def test_a_command_that_does_not_listen_is_killed_after_the_grace():
    process = supervise(TREE.format(handler="signal.SIG_IGN"), grace=0.5)
    pids = pids_of(process)
    process.stdin.close()
    assert process.wait(30) == 137
    wait_until_gone(pids)


def test_a_starter_that_is_sigkilled_takes_the_whole_tree_with_it(tmp_path):
    starter = f"""
import subprocess, sys, time
from pathlib import Path
tree = subprocess.Popen(
    [sys.executable, "-m", "operators.local.supervisor", "--grace", "1", "--",
     sys.executable, "-c", {TREE.format(handler="stop")!r}],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
print(tree.pid, tree.stdout.readline(), flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    supervisor, _, *rest = process.stdout.readline().split()
    pids = [int(pid) for pid in [supervisor, *rest]]
    assert all(map(alive, pids)) and len(pids) == 4
    process.kill()
    process.wait()
    wait_until_gone(pids)


def test_the_commands_own_end_leaves_no_one_behind():
    program = TREE.format(handler="stop").replace("time.sleep(600)\n", "sys.exit(65)\n")
    process = supervise(program)
    pids = pids_of(process)
    assert process.wait(30) == 65
    wait_until_gone(pids)


def test_a_signal_that_ends_the_command_is_told():
    process = supervise("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(30) == 137


def test_a_sigkilled_supervisor_takes_the_command_with_it():
    process = supervise("import os, time; print('pids', os.getpid(), flush=True); time.sleep(600)")
    pids = pids_of(process)
    process.kill()
    process.wait()
    wait_until_gone(pids)


def test_output_passes_unchanged_and_completely():
    process = supervise("import sys; print('a' * 300_000); print('è', file=sys.stderr)")
    assert process.stdout.read() == "a" * 300_000 + "\nè\n"
    assert process.wait(30) == 0


@pytest.mark.parametrize("end", ["kill", "return"])
def test_what_a_command_leaves_in_its_temporary_folder_is_removed(end, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = f"""
import os, pathlib, signal, tempfile
left = pathlib.Path(tempfile.mkdtemp()) / "weights"
left.write_bytes(bytes(100))
print(left, flush=True)
if {end == "kill"}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = supervise(program)
    left = Path(process.stdout.readline().strip())
    assert tmp_path in left.parents
    assert process.wait(timeout=30) == (137 if end == "kill" else 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.remedy("free some space there, then clear this task")
def test_without_a_place_for_a_temporary_folder_the_command_is_to_be_tried_again(tmp_path):
    program = "import tempfile; tempfile.tempdir = {!r}; import runpy; runpy.run_module({!r}, run_name='__main__')"
    starter = program.format(str(tmp_path / "unmounted"), "operators.local.supervisor")
    command = [sys.executable, "-c", starter, "--grace", "1", "--", sys.executable, "-c", "print('started')"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 75
    assert ended.stdout.startswith("error: no temporary folder can be created") and "unmounted" in ended.stdout
    assert ended.stdout.strip().endswith("free some space there, then clear this task")
    (tmp_path / "unmounted").mkdir()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as again:
        assert (again.stdout.read(), again.wait(timeout=30)) == ("started\n", 0)
