from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from include.home import PROJECT, serving_ports
from include.laptop import doctor


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_block: int) -> None:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))


def run_doctor(*prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "include.laptop.doctor"]
    return subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_this_machine_is_fit() -> None:
    result = run_doctor()
    assert (result.returncode, result.stderr) == (0, "")


def test_one_core_is_too_few() -> None:
    result = run_doctor("taskset", "-c", str(min(os.sched_getaffinity(0))))
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "error: 2 cores are needed, 1 may be used here: give the machine or the container more"
    )


def test_a_taken_port_is_named_with_others_to_try(free_block: int) -> None:
    with socket.create_server(("127.0.0.1", free_block)):
        result = run_doctor()
    assert result.returncode == 1
    assert f"port {free_block} on 127.0.0.1 is taken" in result.stderr
    assert f"ANEMONE_PORT={free_block + 20}" in result.stderr


def test_taken_serving_ports_are_named_together() -> None:
    router, controller = serving_ports()["router"], serving_ports()["controller"]
    with socket.create_server(("127.0.0.1", router)), socket.create_server(("127.0.0.1", controller)):
        result = run_doctor()
    assert result.stderr.startswith(f"error: ports {router}, {controller} on 127.0.0.1 are taken")


def test_ports_of_outgoing_connections_are_refused() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    result = run_doctor(ANEMONE_PORT=str(first - 12))
    assert result.returncode == 1
    assert f"lie among the ports of outgoing connections ({first} to" in result.stderr
    assert run_doctor(ANEMONE_PORT=str(first - 16)).returncode == 0


def test_little_shared_memory_is_told_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_SHARED_MEMORY", 10**18)
    (sentence,) = doctor.diagnose()
    assert "1000000000000 MB are needed in /dev/shm" in sentence


def test_a_port_that_is_none_is_one_sentence() -> None:
    result = run_doctor(ANEMONE_PORT="http")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_full_disk_is_told_with_both_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "INSTALLED", {"airflow": 10**18, "jobs": 10**18})
    (sentence,) = doctor.diagnose()
    assert "2000000000.8 GB are needed" in sentence
    assert str(tmp_path) in sentence


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("OLDEST_PYTHON", (3, 99), "Python 3.99 to"),
        ("NEWEST_PYTHON", (3, 10), "Python 3.11 to 3.10"),
        ("OLDEST_GLIBC", (9, 9), "glibc 9.9 or newer"),
        ("LEAST_MEMORY", 10**18, "of memory are needed"),
    ],
)
def test_every_other_lack_is_one_sentence(
    limit: str, value: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, limit, value)
    (sentence,) = doctor.diagnose()
    assert words in sentence


def test_a_python_without_venv_is_told_which_package_to_install() -> None:
    code = (
        "import importlib.util as u, sys; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'ensurepip' else find(name, *a); "
        "from include.laptop.doctor import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "has no ensurepip" in result.stderr
    assert f"python3.{sys.version_info[1]}-venv" in result.stderr
