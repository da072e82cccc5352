"""Recipes: one YAML a way of customizing a model, `<model>/<size>_<method>_<topology>.yaml`.

Resolving a recipe turns it into one validated configuration a job: file references (chat template, expectation
suite) are replaced by what the files hold, so that a job's name depends on their content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError

from include.errors import ConfigurationError
from include.gates.evaluation import EvaluationGate
from include.release.rollouts import CanaryPolicy
from include.specs import config_class
from include.specs.base import Model

_FOLDER = Path(__file__).parent
_INCLUDE = _FOLDER.parent
_STAGES = ("ingest", "curate", "check", "finetune", "merge", "evaluate")
_USE_CHAT = ("check", "finetune", "merge", "evaluate")


class Source(Model):
    """An artifact that a run makes, or finds made: which job, and with which configuration."""

    job: str
    config: dict[str, Any] = {}


class Gates(Model):
    """What a candidate must reach."""

    evaluation: EvaluationGate = EvaluationGate()


class Recipe(Model):
    """A recipe as it stands in its file.

    Attributes:
        model: the registered model's name in MLflow; candidates of one model compete for its `champion`.
        max_tokens: longest conversation, template included, in tokens.
        chat_template: a file of `include/templates/`.
        base: the model to start from. `heldout`: the rows to evaluate on; none: split off the data set.
        engine: of the job `engine`; its `max_tokens` is the recipe's, and its `rows` and `max_new_tokens` are those of
            `evaluate`, unless it gives others.
        canary: how a release is led to all of the traffic, and what stops it.
        sizes: stage → size of its pods on a cluster (`Cluster.sizes`), where the platform's own choice is too small.
    """

    description: str
    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    max_tokens: Annotated[int, Field(ge=8)]
    chat_template: str
    base: Source
    heldout: Source | None = None
    ingest: dict[str, Any] = {}
    curate: dict[str, Any] = {}
    check: dict[str, Any]
    finetune: dict[str, Any]
    merge: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    gates: Gates = Gates()
    engine: dict[str, Any] = {}
    canary: CanaryPolicy = CanaryPolicy()
    sizes: dict[str, str] = {}


def recipe_names() -> list[str]:
    """Every recipe there is, as `<model>/<size>_<method>_<topology>`, sorted."""
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.glob("*/*.yaml"))


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe as one validated configuration a stage, ready to hand to jobs and gates.

    Args:
        name: as `recipe_names` gives it.
        overrides: `{"finetune.steps": 200, …}`: dotted path of a key → its value.

    Returns:
        One section a stage, {"job": the verb, "config": its validated configuration}, or None for `heldout` where the
        recipe names none; and {"name", "description", "model", "gates", "canary"}. Plain JSON values. `ingest` has no
        `source` yet.

    Raises:
        ConfigurationError: an unknown recipe, file or key, or a value out of its bounds, with the nearest known name.
    """
    if name not in recipe_names():
        raise ConfigurationError(f"there is no recipe {name!r}{_nearest(name, recipe_names())}")
    path = _FOLDER / f"{name}.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in (overrides or {}).items():
        _override(document, key, value)
    recipe = _validated(Recipe, document, name)
    shared = {"chat_template": _text("templates", recipe.chat_template, name), "max_tokens": recipe.max_tokens}
    sections: dict[str, Any] = {"name": name, "description": recipe.description, "model": recipe.model}
    for part in ("gates", "canary"):
        sections[part] = getattr(recipe, part).model_dump(mode="json")
    for stage in _STAGES:
        section = dict(getattr(recipe, stage))
        if stage in _USE_CHAT:
            section = {**shared, **section}
        if stage == "check":
            section["suite"] = json.loads(_text("expectations", f"{section.get('suite')}.json", name))
        required = {"source": "-"} if stage == "ingest" else {}
        config = _validated(config_class(stage), {**section, **required}, f"{name}: {stage}")
        plain = {key: value for key, value in config.model_dump(mode="json").items() if key not in required}
        sections[stage] = {"job": stage, "config": plain}
    evaluated = sections["evaluate"]["config"]
    shared = {"max_tokens": recipe.max_tokens, **{key: evaluated[key] for key in ("rows", "max_new_tokens")}}
    config = _validated(config_class("engine"), {**shared, **recipe.engine}, f"{name}: engine")
    sections["engine"] = {"job": "engine", "config": config.model_dump(mode="json")}
    for key in ("base", "heldout"):
        source: Source | None = getattr(recipe, key)
        if source is not None:
            config = _validated(config_class(source.job), source.config, f"{name}: {key}.config")
            sections[key] = {"job": source.job, "config": config.model_dump(mode="json")}
        else:
            sections[key] = None
    sections["champion"] = {"job": "champion", "config": {"model": recipe.model}}
    for stage, size in recipe.sizes.items():
        if sections.get(stage) is None or stage in ("gates", "canary"):
            raise ConfigurationError(
                f"recipe {name}: sizes: there is no stage {stage!r}{_nearest(stage, [*_STAGES, 'engine'])}"
            )
        sections[stage]["size"] = size
    return sections


def _override(document: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    at: Any = document
    for parent in parents:
        if not isinstance(at, dict):
            break
        at = at.setdefault(parent, {})
    if not last or not isinstance(at, dict):
        raise ConfigurationError(f"the override {key!r} does not name a key of the recipe: write it as finetune.steps")
    at[last] = value


def _validated(model: type[Model], document: Any, where: str) -> Any:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "recipe"
        if first["type"] == "extra_forbidden":
            hint = _nearest(str(first["loc"][-1]), _keys(model, first["loc"][:-1]))
            raise ConfigurationError(f"recipe {where}: unknown key {key!r}{hint}") from None
        raise ConfigurationError(f"recipe {where}: {key}: {first['msg']}") from None


def _keys(model: type[Model], path: tuple[int | str, ...]) -> list[str]:
    """The keys that a model has at `path`; an optional section is looked into."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        choices = (annotation, *get_args(annotation))
        model = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, Model))
    return list(model.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f": choose one of {', '.join(known)}"


def _text(folder: str, file: str, recipe: str) -> str:
    path = _INCLUDE / folder / file
    known = sorted(found.name for found in (_INCLUDE / folder).iterdir() if found.is_file())
    if file not in known:
        raise ConfigurationError(
            f"recipe {recipe} names {file!r}, which include/{folder}/ does not hold{_nearest(file, known)}"
        )
    return path.read_text(encoding="utf-8")
