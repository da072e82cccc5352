"""The tags that Anemone gives to a model version. They are stored: a name that changed would not be found again."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from include.model import Model

ARTIFACT_TAG = "anemone.artifact"
"""The URI of the merged model's artifact."""

DIGEST_TAG = "anemone.digest"
"""The content digest of the merged model's artifact."""

RECIPE_TAG = "anemone.recipe"
"""The name of the recipe that made it."""

RESOLVED_RECIPE_TAG = "anemone.resolved_recipe"
"""Where that recipe stands as the run resolved it: a `RecipeAddress` as JSON. The recipe itself can be longer than a
registry takes. Versions of 0.1 lack it."""

RUN_TAG = "anemone.run_id"
"""The id of the run that registered it."""

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


class RecipeAddress(Model):
    """Where a candidate's recipe is.

    Attributes:
        uri: of the artifact of its registration, whose `candidate.json` holds it as `resolved_recipe`.
        digest: of its JSON (`include.artifacts.naming.digest`).
    """

    uri: str
    digest: str


def recipe_address(tags: Mapping[str, str]) -> RecipeAddress | None:
    """Return where the recipe of a version with these tags is; None where they do not say it."""
    try:
        return RecipeAddress.model_validate_json(tags.get(RESOLVED_RECIPE_TAG, ""))
    except ValidationError:
        return None
