"""Ports and network interfaces of this node."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import closing, suppress
from pathlib import Path

from include.errors import TryAgainError

_PORTS = 100
_SIOCGIFADDR = 0x8915


def free_port(first: int) -> int:
    """Return the first free port from `first` on.

    Raises:
        TryAgainError: the next hundred are all taken.
    """
    for port in range(first, first + _PORTS):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise TryAgainError(f"the ports {first} to {first + _PORTS} of node 0 are all taken: end what listens there")


def limit_silence(port: int, seconds: int) -> None:
    """Let this process's connections to `port` fail once the other side has not answered for `seconds`.

    Left alone, Linux sends again for a quarter of an hour (tcp(7): tcp_retries2), and waits for ever for an answer to
    what has arrived. torch's TCPStore has no such option, and gives nobody its socket.
    """
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not str(link.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(link.name))) as connection:
                if connection.getpeername()[1:2] == (port,):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 2))
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 4))
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def _address_of(any_socket: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    try:
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    except OSError:
        return None


def interface_towards(address: str) -> str | None:
    """Return the network interface over which this node reaches `address`, or None where that is unknown."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as route:
        try:
            # Connecting a datagram socket sends nothing: the kernel only chooses one of this host's addresses.
            route.connect((address, 9))
            here = route.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(route, name) == here:
                    return name
        except OSError:
            return None
    return None
