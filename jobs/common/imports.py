"""Keep optional dependencies that nobody uses out of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_scikit_learn() -> Iterator[None]:
    """Imports within find no scikit-learn, as if it were not installed.

    transformers (for assisted decoding) and nltk (for classifiers) import it where they find it, which costs a job
    3.5 CPU-s at its start, with pandas and SciPy in its wake. No job uses either part.
    """
    if "sklearn" in sys.modules:
        yield
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["sklearn"]
