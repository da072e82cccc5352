"""What a running job shows to Prometheus: its loss, its speed, and its GPUs, at /metrics.

Off, unless `ANEMONE_METRICS_PORT` names a port, as a cluster's platform does. No job fails for want of it. Standard
library only: every job imports this, whatever its image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from include.events import format_event
from include.job_environment import METRICS_PORT

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SMI_SECONDS = 5.0

_GAUGES = {
    ("train", "loss"): ("training_loss", "Mean over the label tokens of the last reported step."),
    ("train", "tokens_per_second"): ("throughput_tokens_per_sec", "Tokens trained on a second, over all ranks."),
    ("train", "step"): ("training_step", "Optimizer steps done."),
    ("validation", "validation_loss"): ("validation_loss", "Mean over the validation rows' label tokens."),
}
"""Event and field → gauge and what it is."""

_LAST_STEP = ("training_last_step_timestamp_seconds", "When a step was last reported, in Unix time.")
_PROGRESS = ("job_progress", "Share of the job that is done, as far as it knows.")
_GPU_UTILIZATION = ("gpu_utilization", "Per cent of the time in which a kernel ran, as NVML samples it.")
_GPU_MEMORY = ("gpu_memory_used", "Bytes of the GPU's memory in use.")


class Metrics:
    """The figures of one job, as its events bring them."""

    def __init__(self, stage: str, artifact: str) -> None:
        self._labels = {"stage": stage, "artifact": artifact}
        self._values: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def take(self, event: str, fields: Mapping[str, Any]) -> None:
        """Keep what an event says."""
        with self._lock:
            for field, value in fields.items():
                gauge = _PROGRESS if field == "progress" else _GAUGES.get((event, field))
                if gauge is not None:
                    self._values[gauge] = float(value)
            if event == "train":
                self._values[_LAST_STEP] = time.time()

    def render(self) -> str:
        """In Prometheus' text format."""
        with self._lock:
            found = {gauge: [(self._labels, value)] for gauge, value in self._values.items()}
        for gpu, (utilization, memory) in enumerate(_gpus()):
            labels = {**self._labels, "gpu": str(gpu)}
            found.setdefault(_GPU_UTILIZATION, []).append((labels, utilization))
            found.setdefault(_GPU_MEMORY, []).append((labels, memory))
        lines = []
        for (name, text), samples in sorted(found.items()):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{{{_written(labels)}}} {value!r}" for labels, value in samples]
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def exposed(stage: str, artifact: str) -> Iterator[Metrics]:
    """The figures of a job, shown at the port that the environment names while the context lasts."""
    metrics = Metrics(stage, artifact)
    server = None
    if port := os.environ.get(METRICS_PORT):
        try:
            server = _server(int(port), metrics)
        except (OSError, ValueError, OverflowError) as error:
            reason = f"{METRICS_PORT} is {port!r}, and nothing can be shown there ({error}): the job goes on without"
            print(format_event("metrics_not_shown", {"reason": reason}), flush=True)
    try:
        yield metrics
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _server(port: int, metrics: Metrics) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = metrics.render().encode()
            self.send_response(200)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A scrape is not worth a line of the job's log."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
    return server


def _gpus() -> list[tuple[float, float]]:
    """Utilization in per cent and used memory in bytes of each GPU that this process may see; none without any.

    By nvidia-smi, which NVIDIA's container runtime puts into every container with a GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout
        rows = [line.split(",") for line in answer.splitlines()]
        return [(float(utilization), float(mebibytes) * 2**20) for utilization, mebibytes in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _written(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
