"""Ports and network interfaces of this node."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import closing

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
