"""The lease on a target: while its holder renews it, the weight that the holder set is in force."""

from __future__ import annotations

import time
from collections.abc import Callable


class HeldError(Exception):
    """Another holder's lease is live."""


class Lease:
    """A lease in the router's memory; nobody holds it when the router has just started.

    Attributes:
        term: counts how often it was taken by someone who did not hold it; a lapsed lease that is taken again, even by
            the same holder, begins a new term.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holder: str | None = None
        self._expires = float("-inf")
        self.term = 0

    @property
    def expires_in(self) -> float:
        """Seconds; 0 where nobody holds it."""
        return max(0.0, self._expires - self._clock())

    @property
    def holder(self) -> str | None:
        return self._holder if self._clock() < self._expires else None

    def take(self, holder: str, seconds: float) -> None:
        """Take or renew it. Raises HeldError where another holds it."""
        current = self.holder
        if current not in (None, holder):
            raise HeldError(f"the lease is held by {current} for another {self.expires_in:.1f} s")
        if current is None:
            self.term += 1
        self._holder = holder
        self._expires = self._clock() + seconds

    def release(self, holder: str) -> None:
        """Give it back; do nothing where nobody holds it. Raises HeldError where another does."""
        current = self.holder
        if current not in (None, holder):
            raise HeldError(f"the lease is held by {current}")
        self._holder = None
        self._expires = float("-inf")
