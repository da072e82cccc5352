"""The command that starts the tritonserver inside nvidia-pytriton without pytriton.

The server loads nothing by itself: it is asked to over gRPC, which listens on 127.0.0.1 only. A load over HTTP would
occupy one of its few threads for as long as it takes, so that API is closed there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from include.artifacts.naming import digest, file_digest
from include.durable import fsync, fsync_tree
from include.errors import ConfigurationError
from include.events import format_event
from jobs.common.command_line import LOCAL
from jobs.serving.triton.leftovers import clear_leftovers, write_record
from jobs.serving.triton.repository import MODELS

BACKENDS = "backends"
STUB = "triton_python_backend_stub"

EXIT_SECONDS = 10
"""By default, after SIGTERM, for requests in flight; connections that are idle but open use it up too."""
HTTP_THREADS = 4
CLOSED_HTTP = "model-repository,shared-memory,trace,logging"
CLOSED_GRPC = "shared-memory,trace,logging"


class Ports(NamedTuple):
    """Ports of the server; gRPC's is on 127.0.0.1, whatever the address of the others."""

    http: int
    grpc: int
    metrics: int


class Command(NamedTuple):
    """The program to replace this process with."""

    arguments: list[str]
    environment: Mapping[str, str]


def prepare(folder: Path, ports: Ports, *, host: str = LOCAL, exit_seconds: int = EXIT_SECONDS) -> Command:
    """Make all that tritonserver needs below `folder`, clear away what a killed one left, and return its command.

    The calling process is recorded as the server of this folder, and has to become it by `os.execve`.

    Args:
        host: address of HTTP and of the metrics.
        exit_seconds: after SIGTERM, for requests in flight.

    Raises:
        ConfigurationError: a port is taken, another server runs on this folder, or nvidia-pytriton has no server for
            this Python.
    """
    (folder / MODELS).mkdir(parents=True, exist_ok=True)
    with (folder / ".triton.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for what in clear_leftovers(folder):
            print(format_event("cleared", {"what": what}))
        _require_free(ports, host)
        backends = _backends(folder)
        region = write_record(folder)
    package = _package()
    print(format_event("triton", {"folder": folder, **ports._asdict(), "pid": os.getpid()}))
    return Command(
        [
            str(package / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={folder / MODELS}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={region}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            # Otherwise one canary that does not load would make the whole server unready.
            "--strict-readiness=false",
            "--exit-on-error=true",
            f"--exit-timeout-secs={exit_seconds}",
            f"--http-address={host}",
            f"--http-port={ports.http}",
            f"--http-thread-count={HTTP_THREADS}",
            f"--http-restricted-api={CLOSED_HTTP}:key={secrets.token_hex()}",
            f"--grpc-address={LOCAL}",
            f"--grpc-port={ports.grpc}",
            f"--grpc-restricted-protocol={CLOSED_GRPC}:key={secrets.token_hex()}",
            f"--metrics-address={host}",
            f"--metrics-port={ports.metrics}",
            "--metrics-config=summary_latencies=true",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            "--log-format=ISO8601",
        ],
        _environment(package),
    )


def _environment(package: Path) -> dict[str, str]:
    libraries = [str(package.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        # The stub finds its packages by the first python3 on the path, whatever PYTHONPATH says.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _package() -> Path:
    return Path(str(distribution("nvidia-pytriton").locate_file("pytriton")))


def _backends(folder: Path) -> Path:
    """Return a private copy of the Python backend with the stub of this Python, made anew when the wheel changes.

    A new wheel does not affect a server that runs.
    """
    server = _package() / "tritonserver"
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB
    if not stub.is_file():
        raise ConfigurationError(
            f"nvidia-pytriton has no {STUB} for Python {sys.version_info.major}.{sys.version_info.minor}: "
            f"use one of {', '.join(sorted(path.name for path in stub.parent.parent.iterdir()))}"
        )
    sources = [*sorted((server / "backends" / "python").iterdir()), stub]
    target = folder / BACKENDS / digest([[path.name, file_digest(path)] for path in sources if path.is_file()])[:16]
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        for old in target.parent.iterdir():
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / target.name / "python"
            made.mkdir(parents=True)
            for path in sources:
                if path.is_file():
                    shutil.copy2(path, made)
            fsync_tree(made.parent)
            made.parent.rename(target)
        fsync(target.parent)
    return target


def _require_free(ports: Ports, host: str) -> None:
    for name, port in ports._asdict().items():
        address = LOCAL if name == "grpc" else host
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise ConfigurationError(
                    f"port {port} on {address}, for Triton's {name}, cannot be used ({error}): stop what listens "
                    "there, or choose another port"
                ) from None
