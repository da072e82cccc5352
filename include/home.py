"""Where Anemone keeps its things on this machine, and on which ports it serves there.

Standard library only, for any Python from 3.8 on.
"""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

SERVING_PORTS = ("router", "router_admin", "controller", "triton_http", "triton_grpc", "triton_metrics")
"""What listens on the ports from `ANEMONE_PORT` + 10 on, in this order."""


def home() -> Path:
    """Return `ANEMONE_HOME`, or `.anemone` in the project."""
    return Path(os.environ.get("ANEMONE_HOME") or PROJECT / ".anemone").absolute()


def port() -> int:
    """Return Airflow's port on 127.0.0.1: `ANEMONE_PORT`, 8080 where it is not set.

    Raises:
        ValueError: it is no port, or too high for the serving ports above it.
    """
    text = os.environ.get("ANEMONE_PORT") or "8080"
    highest = 65535 - 10 - len(SERVING_PORTS)
    if not text.isdigit() or not 1 <= int(text) <= highest:
        raise ValueError(f"ANEMONE_PORT is {text!r}: set it to a number from 1 to {highest}")
    return int(text)


def serving_ports() -> dict[str, int]:
    """Return the port on 127.0.0.1 of each serving service by its name in `SERVING_PORTS`.

    Raises:
        ValueError: as `port` does.
    """
    return {name: port() + 10 + offset for offset, name in enumerate(SERVING_PORTS)}
