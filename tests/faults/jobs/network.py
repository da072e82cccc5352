"""A machine's network as a namespace of its own, joined to this one's by a cable that a test can cut."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000


class OtherMachine:
    """A network namespace at the end of a pair of virtual interfaces.

    Attributes:
        here: this machine's address on the cable; only the other machine reaches it there.
    """

    def __init__(self, number: int) -> None:
        self.here = f"10.231.{number}.1"
        self._name = self._cable = f"anemone{number}"
        self._there = f"10.231.{number}.2"

    def connect(self) -> None:
        _ip("netns", "add", self._name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("addr", "add", f"{self.here}/24", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        for command in (f"addr add {self._there}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", self._name, *command.split())

    def disconnect(self) -> None:
        _ip("netns", "delete", self._name)

    def cut(self) -> None:
        """Lose every packet from now on; neither side is told."""
        for rule in ("INPUT -i", "OUTPUT -o"):
            _ip("netns", "exec", self._name, "iptables", "-I", *rule.split(), "eth0", "-j", "DROP")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Start processes on the other machine while the body runs."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as own, Path(f"/run/netns/{self._name}").open() as other:
            if libc.setns(other.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(own.fileno(), _CLONE_NEWNET)


@pytest.fixture
def other_machine() -> Iterator[OtherMachine]:
    """A machine of its own; skipped where this process may not make one."""
    machine = OtherMachine(os.getpid() % 250)
    try:
        machine.connect()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a network of its own needs iproute2, iptables and the right to make one (root): {error}")
    yield machine
    machine.disconnect()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
