"""From the document of a recipe, its file's or one that a candidate brings along, to a configuration for each stage."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, ValidationError, create_model

from include.documents import read_json, read_text
from include.errors import ConfigurationError, first_problem, suggestion
from include.gates import find_gate, gate_names
from include.model import Model
from include.recipes.resolved import ResolvedRecipe, Section
from include.release.rollouts import CanaryPolicy
from include.specs import config_class, job_names
from include.specs.base import GIVEN_BY_RUN, DefaultOf, FileContent, TakenFrom

_INCLUDE = Path(__file__).parent.parent

MODEL_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""Pattern of a registered model's name."""


class Source(Model):
    """An artifact that a run makes, or finds made: which job, and with which configuration."""

    job: str
    config: dict[str, Any] = {}


class Head(Model):
    """The part of a recipe that is about no single stage.

    Attributes:
        model: the registered model's name in MLflow; candidates of one model compete for its `champion`.
        max_tokens: longest conversation, template included, in tokens.
        chat_template: a file of `include/templates/`. Like `model` and `max_tokens` it goes to each stage whose
            configuration has such a key, unless the stage's section gives another.
        base: the model to start from. `heldout`: the rows to evaluate on; none: split off the data set.
        gates: limits by gate (`include/gates/`).
        canary: how a release is led to all of the traffic, and what stops it.
        sizes: stage → size of its pods on a cluster (`Cluster.sizes`), where the platform's own choice is too small.
    """

    description: str
    model: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]
    max_tokens: Annotated[int, Field(ge=8)]
    chat_template: str
    base: Source
    heldout: Source | None = None
    gates: dict[str, dict[str, Any]] = {}
    canary: CanaryPolicy = CanaryPolicy()
    sizes: dict[str, str] = {}


_SHARED = ("model", "max_tokens", "chat_template")
SOURCES = ("base", "heldout")
"""The keys of a recipe that name an artifact which a run makes, or finds made."""


def resolve_document(
    name: str,
    document: dict[str, Any],
    overrides: Mapping[str, Any],
    stages: Callable[[Iterable[str]], Iterable[str]],
    texts: Set[str] = frozenset(),
) -> ResolvedRecipe:
    """Return what a recipe's document says.

    Args:
        stages: from the names of those that it configures to those that are wanted.
        texts: contents of files that stand in it already.
    """
    for key, value in overrides.items():
        _override(document, key, value)
    known = [*Head.model_fields, *job_names()]
    if unknown := next((key for key in document if key not in known), None):
        raise ConfigurationError(f"recipe {name}: unknown key {unknown!r}: {suggestion(str(unknown), known)}")
    head = _validated(Head, {key: value for key, value in document.items() if key in Head.model_fields}, name)
    configured = {key: value for key, value in document.items() if key not in Head.model_fields}
    sized = _stages(head, configured)
    if misplaced := next((stage for stage in head.sizes if stage not in sized), None):
        raise ConfigurationError(
            f"recipe {name}: sizes: there is no stage {misplaced!r}: {suggestion(misplaced, sized)}"
        )
    wanted = list(dict.fromkeys(stages(configured)))
    sections = _Sections(name, head, configured, wanted, texts)
    return ResolvedRecipe(
        name=name,
        description=head.description,
        model=head.model,
        max_tokens=head.max_tokens,
        chat_template=sections.content(FileContent("templates"), head.chat_template),
        stages={
            stage: None if stage in SOURCES and getattr(head, stage) is None else sections[stage] for stage in wanted
        },
        gates={gate: _limits(name, gate, limits) for gate, limits in head.gates.items()},
        canary=head.canary,
        sizes=head.sizes,
        overrides=dict(overrides),
    )


class _Sections:
    """The stages of one recipe, each validated when it is asked for, by the configuration model of its job."""

    def __init__(
        self, recipe: str, head: Head, configured: Mapping[str, Any], run: Iterable[str], texts: Set[str]
    ) -> None:
        self._recipe = recipe
        self._head = head
        self._configured = configured
        self._run = frozenset(run)
        self._texts = texts
        self._known: dict[str, Section] = {}

    def __getitem__(self, stage: str) -> Section:
        if stage not in self._known:
            self._known[stage] = self._resolved(stage)
        return self._known[stage]

    def content(self, mark: FileContent, named: str) -> Any:
        """Return what the file called `named` holds, or `named` itself where it is such a text already."""
        return named if named in self._texts else _content(mark, named, self._recipe)

    def _resolved(self, stage: str) -> Section:
        source = getattr(self._head, stage) if stage in SOURCES else None
        job, given = (source.job, source.config) if source else (stage, self._configured.get(stage, {}))
        where = f"{self._recipe}: {stage}{'.config' if source else ''}"
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"recipe {where}: its value is {given!r}, not keys with values: correct it")
        model = config_class(job)
        values = dict(given)
        for key, field in model.model_fields.items():
            if key not in values and key in _SHARED:
                values[key] = getattr(self._head, key)
            for mark in field.metadata:
                if isinstance(mark, DefaultOf) and key not in values:
                    values[key] = self[mark.stage].config[key]
                elif isinstance(mark, FileContent) and isinstance(named := values.get(key), str):
                    values[key] = self.content(mark, named)
                elif isinstance(mark, TakenFrom) and mark.stages[0] in self._run:
                    own = values.get(key, {})
                    if isinstance(own, Mapping):
                        values[key] = {**self._taken(mark, _model_of(field.annotation)), **own}
        config = _validated(_without_run(model), values, where).model_dump(mode="json", exclude=_given_by_run(model))
        return Section(job=job, config=config, size=self._head.sizes.get(stage))

    def _taken(self, mark: TakenFrom, model: type[Model]) -> dict[str, Any]:
        """Return the values that other stages, and a gate's limits, have for the keys of `model`."""
        sources = [self[stage].config for stage in mark.stages]
        if mark.gate is not None:
            sources.append(_limits(self._recipe, mark.gate, self._head.gates.get(mark.gate, {})))
        found = first_value_of(sources)
        return {key: found[key] for key in model.model_fields if key in found}


def first_value_of(sources: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the sources as one; of a key that several have, the first one's value counts."""
    return ChainMap(*map(dict, sources))


K = TypeVar("K", FileContent, DefaultOf, TakenFrom)


def marks(job: str, kind: type[K]) -> Iterator[tuple[str, K]]:
    """Yield the keys of a job's configuration that have a mark of this kind, each with it."""
    for key, field in config_class(job).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, kind):
                yield key, mark


def followed(job: str, run: Iterable[str]) -> Iterator[str]:
    """Yield the stages whose keys a job's configuration may follow, in a run of the stages `run`."""
    for _, mark in marks(job, DefaultOf):
        yield mark.stage
    for _, taken in marks(job, TakenFrom):
        if taken.stages[0] in run:
            yield from taken.stages


def _given_by_run(model: type[Model]) -> set[str]:
    return {key for key, field in model.model_fields.items() if GIVEN_BY_RUN in field.metadata}


@cache
def _without_run(model: type[Model]) -> type[Model]:
    """Return a configuration's model that does not ask for what only the run can give."""
    given: dict[str, Any] = dict.fromkeys(_given_by_run(model), (Any, None))
    return create_model(model.__name__, __base__=model, **given) if given else model


def _limits(recipe: str, gate: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    if gate not in gate_names():
        raise ConfigurationError(f"recipe {recipe}: unknown key {f'gates.{gate}'!r}: {suggestion(gate, gate_names())}")
    return _validated(find_gate(gate).limits, limits, f"{recipe}: gates.{gate}").model_dump(mode="json")


def _stages(head: Head, configured: Mapping[str, Any]) -> list[str]:
    """Return what a run of the recipe may call a stage: a job that makes `base` or `heldout` goes by that name."""
    sources = {key: source for key in SOURCES if (source := getattr(head, key)) is not None}
    made = {source.job for source in sources.values()} - configured.keys()
    return [*sources, *(job for job in job_names() if job not in made)]


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


M = TypeVar("M", bound=Model)


def _validated(model: type[M], document: Any, where: str) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            hint = suggestion(str(first["loc"][-1]), _keys(model, first["loc"][:-1]))
            raise ConfigurationError(
                f"recipe {where}: unknown key {'.'.join(map(str, first['loc']))!r}: {hint}"
            ) from None
        raise ConfigurationError(f"recipe {where}: {first_problem(error, 'recipe')}") from None


def _keys(model: type[Model], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a model has at `path`, within optional sections and lists too."""
    for part in (part for part in path if isinstance(part, str)):
        model = _model_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[Model]:
    """Return the model in the annotation of a field, which may be optional."""
    choices = (annotation, *get_args(annotation))
    return next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, Model))


def _content(mark: FileContent, name: str, recipe: str) -> Any:
    file = f"{name}{mark.suffix}"
    folder = _INCLUDE / mark.folder
    known = sorted(found.name for found in folder.iterdir() if found.is_file())
    if file not in known:
        raise ConfigurationError(
            f"recipe {recipe} names {file!r}, which include/{mark.folder}/ does not hold: {suggestion(file, known)}"
        )
    read = read_json if file.endswith(".json") else read_text
    return read(folder / file, f"recipe {recipe}: include/{mark.folder}/{file}")
