"""A running job's loss, speed and GPUs, shown to Prometheus at /metrics.

Off, unless `ANEMONE_METRICS_PORT` names a port, as a cluster's platform does. A job goes on where the port cannot be
opened. prometheus-client is imported only then: every job imports this module, whatever its image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from include.events import format_event
from include.job_environment import METRICS_PORT

if TYPE_CHECKING:
    from prometheus_client import Metric

_SMI_SECONDS = 5.0

GAUGES = {
    "training_loss": "Mean over the label tokens of the last reported step.",
    "throughput_tokens_per_sec": "Tokens trained on a second, over all ranks.",
    "training_step": "Optimizer steps done.",
    "training_last_step_timestamp_seconds": "When a step was last reported, in Unix time.",
    "validation_loss": "Mean over the validation rows' label tokens.",
    "job_progress": "Share of the job that is done, as far as it knows.",
    "gpu_utilization": "Per cent of the time in which a kernel ran, as NVML samples it.",
    "gpu_memory_used": "Bytes of the GPU's memory in use.",
}
"""What each gauge shows."""

_FIELDS = {
    ("train", "loss"): "training_loss",
    ("train", "tokens_per_second"): "throughput_tokens_per_sec",
    ("train", "step"): "training_step",
    ("validation", "validation_loss"): "validation_loss",
}
"""Gauge of an event's field."""


class Metrics:
    """The latest figures of one job's events; a collector of prometheus-client."""

    def __init__(self, stage: str, artifact: str) -> None:
        self._labels = {"stage": stage, "artifact": artifact}
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, event: str, fields: Mapping[str, Any]) -> None:
        """Keep the figures of an event."""
        with self._lock:
            for field, value in fields.items():
                gauge = "job_progress" if field == "progress" else _FIELDS.get((event, field))
                if gauge is not None:
                    self._values[gauge] = float(value)
            if event == "train":
                self._values["training_last_step_timestamp_seconds"] = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges that have a value, those of the GPUs as they are now."""
        from prometheus_client.core import GaugeMetricFamily

        with self._lock:
            values = dict(self._values)
        for name, value in values.items():
            gauge = GaugeMetricFamily(name, GAUGES[name], labels=self._labels)
            gauge.add_metric([*self._labels.values()], value)
            yield gauge
        gpus = _gpus()
        for place, name in enumerate(("gpu_utilization", "gpu_memory_used") if gpus else ()):
            gauge = GaugeMetricFamily(name, GAUGES[name], labels=[*self._labels, "gpu"])
            for number, figures in enumerate(gpus):
                gauge.add_metric([*self._labels.values(), str(number)], figures[place])
            yield gauge


@contextmanager
def exposed(stage: str, artifact: str) -> Iterator[Metrics]:
    """Show the figures of a job at the port that the environment names, while the context lasts."""
    metrics = Metrics(stage, artifact)
    server = None
    if port := os.environ.get(METRICS_PORT):
        try:
            server = _serve(int(port), metrics)
        except (ImportError, OSError, ValueError, OverflowError) as error:
            reason = f"{METRICS_PORT} is {port!r}, and nothing can be shown there ({error}): the job goes on without"
            print(format_event("metrics_not_shown", {"reason": reason}), flush=True)
    try:
        yield metrics
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _serve(port: int, metrics: Metrics) -> ThreadingHTTPServer:
    """Answer at /metrics, and nowhere else, as `prometheus_client.start_http_server` would at every path."""
    from prometheus_client import CollectorRegistry, MetricsHandler

    own = CollectorRegistry()
    own.register(metrics)

    class Handler(MetricsHandler):
        registry = own
        timeout = 10.0

        def do_GET(self) -> None:  # noqa: N802
            if self.path.partition("?")[0] == "/metrics":
                super().do_GET()
            else:
                self.send_error(404)

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
    return server


def _gpus() -> list[tuple[float, float]]:
    """Return utilization in per cent and used memory in bytes of each GPU that this process may see; none without any.

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
