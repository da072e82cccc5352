"""What Prometheus finds in a job's pod."""

from __future__ import annotations

import math
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jobs.common import metrics
from tests.ports import free_ports

TRAIN = {"step": 20, "steps": 100, "loss": 0.25, "tokens_per_second": 1234.5, "progress": 0.2}


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def value(text: str, name: str, labels: str = '{artifact="finetune-1",stage="finetune"}') -> float:
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name}{labels} ")]
    return float(found.rpartition(" ")[2])


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    (chosen,) = free_ports(1)
    monkeypatch.setenv(metrics.METRICS_PORT, str(chosen))
    monkeypatch.setenv("PATH", "/nowhere")
    return chosen


def test_the_figures_of_a_training_are_those_of_its_last_events(port: int) -> None:
    with metrics.exposed("finetune", "finetune-1") as shown:
        assert "training_loss" not in scrape(port)
        shown.take("train", {**TRAIN, "loss": 9.0})
        shown.take("train", TRAIN)
        shown.take("validation", {"step": 20, "validation_loss": 0.5, "best": True})
        text = scrape(port)
    assert "# HELP training_loss Mean over the label tokens of the last reported step.\n" in text
    assert "# TYPE training_loss gauge\n" in text
    assert value(text, "training_loss") == 0.25
    assert value(text, "validation_loss") == 0.5
    assert value(text, "throughput_tokens_per_sec") == 1234.5
    assert value(text, "training_step") == 20
    assert value(text, "job_progress") == 0.2
    assert value(text, "training_last_step_timestamp_seconds") > 1.7e9
    assert "gpu_" not in text
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_a_loss_that_is_no_number_is_shown_as_such(port: int) -> None:
    with metrics.exposed("finetune", "finetune-1") as shown:
        shown.take("train", {**TRAIN, "loss": math.nan})
        assert math.isnan(value(scrape(port), "training_loss"))


def test_each_gpu_is_shown_and_one_that_cannot_be_asked_is_left_out(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '97, 40960'\necho '3, 512'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with metrics.exposed("finetune", "finetune-1") as shown:
        shown.take("train", TRAIN)
        text = scrape(port)
        labels = '{artifact="finetune-1",gpu="%d",stage="finetune"}'
        assert value(text, "gpu_utilization", labels % 0) == 97
        assert value(text, "gpu_memory_used", labels % 1) == 512 * 2**20
        program.write_text("#!/bin/sh\necho '[N/A], [N/A]'\n")
        assert "gpu_" not in scrape(port) and "training_loss" in scrape(port)


def test_a_job_goes_on_where_its_figures_cannot_be_shown(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with metrics.exposed("a", "a-1"), metrics.exposed("b", "b-1") as shown:
        shown.take("train", TRAIN)
        assert 'stage="b"' not in scrape(port)
    monkeypatch.setenv(metrics.METRICS_PORT, "many")
    with metrics.exposed("a", "a-1"):
        pass
    monkeypatch.setenv(metrics.METRICS_PORT, str(port))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with metrics.exposed("a", "a-1"), pytest.raises(urllib.error.URLError):
        scrape(port)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all("metrics_not_shown" in line and metrics.METRICS_PORT in line for line in printed)


def test_nothing_else_is_there(port: int) -> None:
    with metrics.exposed("a", "a-1"), pytest.raises(urllib.error.HTTPError):
        scrape(port, "/")


def test_only_a_job_that_shows_its_figures_imports_the_library() -> None:
    """Someone else's image may lack it."""
    program = "import sys, jobs.common.runtime; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
