"""What the tests of the laptop share."""

from __future__ import annotations

import random
import socket

import pytest


@pytest.fixture
def free_block(monkeypatch: pytest.MonkeyPatch) -> int:
    """`ANEMONE_PORT`, free as are the ports of serving after it; below the range that the kernel gives away."""
    while True:
        port = random.randrange(20000, 30000)
        try:
            for number in (port, *range(port + 10, port + 16)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        monkeypatch.setenv("ANEMONE_PORT", str(port))
        return port
