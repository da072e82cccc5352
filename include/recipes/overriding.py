"""A resolved recipe with other values of some keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from include.recipes.document import SOURCES, Head, first_value_of, followed, marks, resolve_document
from include.recipes.resolved import ResolvedRecipe, Section
from include.specs.base import DefaultOf, FileContent, TakenFrom


def override(recipe: ResolvedRecipe, overrides: Mapping[str, Any], stages: Iterable[str]) -> ResolvedRecipe:
    """Return a resolved recipe with other values of some keys, validated anew, whatever its file holds by now.

    As in a file, `max_tokens` and `model` change the stages that have the recipe's own, and a key that a stage takes
    from another (`engine.rows` from `evaluate.rows`) follows that.

    Args:
        recipe: as a candidate brings it along.
        overrides: as of `resolve`.
        stages: that the caller runs.

    Returns:
        The stages of `stages`, and those that an override names. The others are not read: another version of the
        project may have resolved them.

    Raises:
        ConfigurationError: as of `resolve`.
    """
    named = (key.split(".")[0] for key in overrides)
    wanted = [*stages, *(key for key in named if key in SOURCES or key not in Head.model_fields)]
    sections = _read(recipe, wanted)
    document = _document(recipe, sections, overrides, wanted)
    found = resolve_document(recipe.name, document, overrides, lambda _: wanted, _texts(recipe, sections))
    whole = {"sizes": {**recipe.sizes, **found.sizes}, "overrides": {**recipe.overrides, **overrides}}
    return found.model_copy(update=whole)


def _read(recipe: ResolvedRecipe, wanted: Iterable[str]) -> dict[str, Section]:
    """Return the sections of the wanted stages, and of those that their keys follow."""
    found = {name: section for name in wanted if (section := recipe.stages.get(name)) is not None}
    sources = {name for section in found.values() for name in followed(section.job, wanted)}
    return found | {name: section for name in sources if (section := recipe.stages.get(name)) is not None}


def _document(
    recipe: ResolvedRecipe, sections: Iterable[str], overrides: Mapping[str, Any], wanted: Iterable[str]
) -> dict[str, Any]:
    """Return the recipe as a file would say it, with these sections."""
    head = recipe.model_dump(mode="json", exclude={"name", "stages", "overrides", "sizes"})
    sizes = {name: size for name, size in recipe.sizes.items() if name in wanted}
    sources = {key: None if (section := recipe.stages.get(key)) is None else _source(section) for key in SOURCES}
    written = {name: _written(recipe, name, overrides, wanted) for name in sections if name not in SOURCES}
    return {**head, **sources, **written, "sizes": sizes}


def _source(section: Section) -> dict[str, Any]:
    return {"job": section.job, "config": deepcopy(section.config)}


def _texts(recipe: ResolvedRecipe, sections: Mapping[str, Section]) -> set[str]:
    """Return what stands in the sections in the place of a file's name."""
    named = (section.config.get(key) for section in sections.values() for key, _ in marks(section.job, FileContent))
    return {recipe.chat_template, *(text for text in named if isinstance(text, str))}


def _written(recipe: ResolvedRecipe, stage: str, overrides: Mapping[str, Any], run: Iterable[str]) -> dict[str, Any]:
    """Return what a document says of a stage, without the values that follow an overridden key of somewhere else."""
    section = recipe.section(stage)
    config = deepcopy(section.config)
    for key in ("model", "max_tokens"):
        if key in overrides and config.get(key) == getattr(recipe, key):
            del config[key]
    for key, mark in marks(section.job, DefaultOf):
        source = recipe.stages.get(mark.stage)
        followed = source is not None and key in config and config[key] == source.config.get(key)
        if followed and overrides.keys() & {mark.stage, f"{mark.stage}.{key}"}:
            del config[key]
    for key, taken in marks(section.job, TakenFrom):
        if taken.stages[0] in run and isinstance(given := config.get(key), dict):
            sources = [found.config for name in taken.stages if (found := recipe.stages.get(name)) is not None]
            had = first_value_of([*sources, recipe.limits(taken.gate) if taken.gate is not None else {}])
            config[key] = {name: value for name, value in given.items() if name not in had or had[name] != value}
    return config
