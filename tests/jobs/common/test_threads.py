"""How many threads a model gets, on how many cores, and who decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from include.home import PROJECT
from jobs.common.threads import cores, threads_for


@pytest.mark.parametrize(
    ("parameters", "cores", "threads"),
    [
        pytest.param(800_000, 16, 1, id="the demo's model"),
        pytest.param(5_200_000, 16, 2, id="5M"),
        pytest.param(134_515_008, 2, 2, id="SmolLM2-135M on a laptop"),
        pytest.param(134_515_008, 64, 53, id="SmolLM2-135M"),
        pytest.param(494_032_768, 16, 16, id="Qwen2.5-0.5B"),
        pytest.param(7_000_000_000, 0, 1, id="more processes than cores"),
    ],
)
def test_threads_follow_the_model_and_the_machine(parameters: int, cores: int, threads: int) -> None:
    assert threads_for(parameters, cores) == threads


@pytest.mark.parametrize(
    ("files", "share", "expected"),
    [
        pytest.param({}, None, 8, id="a machine"),
        pytest.param({"cpu.max": "max 100000"}, None, 8, id="no limit"),
        pytest.param({"cpu.max": "350000 100000"}, None, 3, id="a limit of 3.5"),
        pytest.param({"cpu.max": "50000 100000"}, None, 1, id="a limit of a half"),
        pytest.param({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, None, 2, id="cgroup v1"),
        pytest.param({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 8, id="v1, no limit"),
        pytest.param({}, "2", 2, id="a pod that requests two"),
        pytest.param({"cpu.max": "100000 100000"}, "2", 1, id="a request above the limit"),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], share: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.delenv("ANEMONE_CORES", raising=False)
    if share is not None:
        monkeypatch.setenv("ANEMONE_CORES", share)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n")
    assert cores(tmp_path) == expected


_SCRIPT = """
import os
from jobs.common.threads import limit_libraries
limit_libraries()
os.sched_getaffinity = lambda _pid: set(range(4))
import torch
from jobs.common.torch_threads import use_threads
print(torch.get_num_threads(), use_threads(800_000), use_threads(100_000_000), use_threads(100_000_000, processes=2))
"""


@pytest.mark.parametrize(("given", "threads"), [(None, "1 1 4 2"), ("2", "2 2 2 2")])
def test_what_the_environment_names_holds(given: str | None, threads: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(PROJECT)} | ({} if given is None else {"OMP_NUM_THREADS": given})
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == threads
