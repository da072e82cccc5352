"""The tags that Anemone gives to a model version. They are stored: a name that changed would not be found again."""

from __future__ import annotations

ARTIFACT_TAG = "anemone.artifact"
"""The URI of the merged model's artifact."""

DIGEST_TAG = "anemone.digest"
"""The content digest of the merged model's artifact."""

RECIPE_TAG = "anemone.recipe"
"""The name of the recipe that made it."""

COMPARED_TAG = "anemone.champion_version"
"""The version of the champion that it was compared with, or `NO_CHAMPION`."""

NO_CHAMPION = "none"

GATES_TAG = "anemone.gates"
"""The limits of the gates that it passed, by gate, as JSON."""

OLD_GATE_TAG = "anemone.gate"
"""Those of the evaluation gate, which version 0.1 stored alone."""

INPUT_DIGEST_TAG = "anemone.input."
"""Followed by an input's name: the input's content digest."""

INPUT_URI_TAG = "anemone.input_uri."
"""Followed by an input's name: the URI of the input's artifact."""
