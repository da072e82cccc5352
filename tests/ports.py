"""Free ports, each given once on this machine for as long as the test's process lives."""

from __future__ import annotations

import random
import socket

from include.home import SERVING_PORTS

# Below the range of outgoing connections: one of those may take a port between its choice and its use. And a client
# that tries again and again to reach a port of that range, while nobody listens there, is given that very port for its
# own end one day, and has then connected to itself.
_FIRST, _LAST = 20_000, 32_000

_given: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, and that no other test of this machine is given."""
    return [_free_block((0,)) for _ in range(count)]


def free_home_port() -> int:
    """A value for `ANEMONE_PORT` whose own port and those of the serving side are free."""
    return _free_block((0, *range(10, 10 + len(SERVING_PORTS))))


def _free_block(offsets: tuple[int, ...]) -> int:
    for _ in range(1000):
        port = random.SystemRandom().randrange(_FIRST, _LAST)
        if all(_is_free(port + offset) for offset in offsets) and _give([port + offset for offset in offsets]):
            return port
    raise RuntimeError(f"no free ports between {_FIRST} and {_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _give(ports: list[int]) -> bool:
    """Note them by names that vanish with this process: abstract sockets, which nobody listens on."""
    names: list[socket.socket] = []
    for port in ports:
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0anemone-test-port-{port}")
        except OSError:
            for each in [*names, name]:
                each.close()
            return False
        names.append(name)
    _given.extend(names)
    return True
