"""What the tests of the laptop share."""

from __future__ import annotations

import pytest

from tests.ports import free_home_port


@pytest.fixture
def free_block(monkeypatch: pytest.MonkeyPatch) -> int:
    """`ANEMONE_PORT`, free as are the ports of serving after it."""
    port = free_home_port()
    monkeypatch.setenv("ANEMONE_PORT", str(port))
    return port
