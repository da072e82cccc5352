"""Free ports for a home of its own."""

from __future__ import annotations

import random
import socket

from include.laptop.home import SERVING_PORTS


def free_home_port() -> int:
    """A value for `ANEMONE_PORT` whose own port and those of the serving side are free.

    Below the range of outgoing connections: a client that tries again and again to reach a port of that range, while
    nobody listens there, is given that very port for its own end one day, and has then connected to itself.
    """
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        if all(map(_is_free, (port, *range(port + 10, port + 10 + len(SERVING_PORTS))))):
            return port
    raise RuntimeError("no free ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
