"""`healthy.py URL [COMPONENT]`: exit 0 where URL answers 200, and calls a named component of Airflow healthy.

Airflow's own `airflow jobs check` costs seconds of a core each time; its health page knows the same.
"""

from __future__ import annotations

import json
import sys
import urllib.request

TIMEOUT = 8.0


def healthy(url: str, component: str | None = None) -> bool:
    """Return whether a service answers at `url`, and, with a `component`, whether Airflow calls it healthy there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT) as answer:
            body = answer.read()
    except OSError:
        return False
    return component is None or json.loads(body)[component]["status"] == "healthy"


if __name__ == "__main__":
    sys.exit(0 if healthy(*sys.argv[1:]) else 1)
