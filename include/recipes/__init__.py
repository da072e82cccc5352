"""Recipes: one YAML a way of customizing a model, `<model>/<size>_<method>_<topology>.yaml`.

A recipe has a head (`Head`), and beside it a section for each stage: the configuration of the job with that name, as
the `Config` of `include/specs/<job>.py` says it. Resolving a recipe turns it into one validated configuration a stage.
Named files (chat template, expectation suite) are replaced by what they hold, so that a job's name depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from include.documents import read_yaml
from include.errors import ConfigurationError, suggestion
from include.recipes.document import MODEL_NAME, SOURCES, resolve_document
from include.recipes.overriding import override
from include.recipes.resolved import ResolvedRecipe

__all__ = ["override", "recipe_model", "recipe_names", "recipe_problem", "resolve"]

_FOLDER = Path(__file__).parent

_MODEL = re.compile(rf"""^model\s*:\s*(["']?)({MODEL_NAME})\1\s*(?:#.*)?$""", re.MULTILINE)
"""A recipe's key `model`, with a value that `Head` accepts."""


def recipe_names(stage: str | None = None) -> list[str]:
    """Return the name of every recipe, as `<model>/<size>_<method>_<topology>`, sorted.

    Args:
        stage: only those that name this stage, and those whose file cannot be read as a recipe, which may have.
    """
    paths = sorted(_FOLDER.glob("*/*.yaml"))
    names = [path.relative_to(_FOLDER).with_suffix("").as_posix() for path in paths]
    return names if stage is None else [name for name in names if _may_name(name, stage)]


def _may_name(recipe: str, stage: str) -> bool:
    try:
        return stage in _document(recipe)
    except ConfigurationError:
        return True


def recipe_model(name: str) -> str | None:
    """Return the model that a recipe names, or None where its file does not show one.

    Read from the text: a recipe whose other keys are wrong still says which model it was that may be live now.
    """
    try:
        text = _path(name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = _MODEL.search(text)
    return found[2] if found else None


def recipe_problem(name: str) -> str | None:
    """Return why a recipe cannot be used, whatever the reason, or None where it can."""
    try:
        resolve(name)
    except ConfigurationError as error:
        return str(error)
    # Also the code that a recipe names, a gate's or a job's own, may be what is broken.
    except Exception as error:
        return f"recipe {name}: {type(error).__name__}: {error}"
    return None


def resolve(name: str, overrides: Mapping[str, Any] | None = None, stages: Iterable[str] = ()) -> ResolvedRecipe:
    """Return a recipe with one validated configuration a stage, ready to hand to jobs and gates.

    Args:
        name: as `recipe_names` gives it.
        overrides: `{"finetune.steps": 200, …}`: dotted path of a key → its value.
        stages: jobs that a DAG runs whatever the recipe holds; one that the recipe does not name gets its defaults.

    Returns:
        The stages that the recipe names, those of `stages`, and `base` and `heldout`. A configuration lacks the keys
        that only the run can give (`GIVEN_BY_RUN`).

    Raises:
        ConfigurationError: an unknown recipe, file or key, or a value out of its bounds, with the nearest known name; a
            file, its own or one that it names, that cannot be read.
    """
    if name not in recipe_names():
        raise ConfigurationError(f"there is no recipe {name!r}: {suggestion(name, recipe_names())}")
    document = _document(name)
    return resolve_document(name, document, overrides or {}, lambda configured: [*configured, *stages, *SOURCES])


def _path(name: str) -> Path:
    return _FOLDER / f"{name}.yaml"


def _document(name: str) -> dict[str, Any]:
    """Return what a recipe's file holds. Raises ConfigurationError where that is no keys with values."""
    document = read_yaml(_path(name), f"recipe {name}: its file")
    if not isinstance(document, dict):
        raise ConfigurationError(f"recipe {name}: the file does not hold keys with values: write description: … first")
    return document
