"""Keep optional dependencies that no job uses out of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_scikit_learn() -> Iterator[None]:
    """Hide scikit-learn from the imports within, as if it were not installed.

    transformers (for assisted decoding) and nltk (for classifiers) import it where it is installed, which costs a job
    3.5 CPU-s at its start, since it imports pandas and SciPy. No job uses either part.
    """
    if "sklearn" in sys.modules:
        yield
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["sklearn"]
