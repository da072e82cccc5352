"""The common part of every job's spec: typed configuration, input artifacts, output name.

A job's own module in this package defines `Config`, `Inputs` and `Spec`. Fields that cannot change the result (as
`processes` of `finetune`, or where an input lies) are marked `NOT_IDENTITY`; all others, and the content digests of the
inputs, make up the output's name. How a recipe fills a field, where it is not by a plain value, is marked too:
`FileContent`, `DefaultOf`, `TakenFrom`, `GIVEN_BY_RUN`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel

from include.artifacts.manifest import ArtifactName, Sha256
from include.model import Model

if TYPE_CHECKING:
    from include.artifacts.s3 import Access


@dataclass(frozen=True)
class Mark:
    """Says something of the field that is annotated with it."""

    name: str

    def __repr__(self) -> str:
        return self.name


NOT_IDENTITY = Mark("NOT_IDENTITY")
"""Marks a field that cannot change a job's result: `processes: Annotated[int, NOT_IDENTITY] = 1`."""

GIVEN_BY_RUN = Mark("GIVEN_BY_RUN")
"""Marks a field that no recipe can know: whoever plans the run fills it in."""


@dataclass(frozen=True)
class FileContent:
    """Marks a field for which a recipe names a file; resolving the recipe puts the file's content there.

    Attributes:
        folder: below `include/`.
        suffix: added to the name; the content of a `.json` file is parsed, of others it is the text.
    """

    folder: str
    suffix: str = ""


@dataclass(frozen=True)
class DefaultOf:
    """Marks a field that a recipe may leave out because the stage `stage` has one of the same name."""

    stage: str


@dataclass(frozen=True)
class TakenFrom:
    """Marks a field whose keys a run has elsewhere; a run without the first of the stages has none of them.

    The field's type is a model. A recipe that gives one of its keys overrules that key.

    Attributes:
        stages: whose configurations give the keys, the first that has a key of that name.
        gate: whose limits give the keys that no stage has.
    """

    stages: tuple[str, ...]
    gate: str | None = None


class Artifact(Model):
    """An input: where to read it, and which bytes were planned with."""

    uri: Annotated[str, NOT_IDENTITY]
    digest: Sha256


class Inputs(Model):
    """Base of a job's inputs: every field is an `Artifact` or `Artifact | None`."""


class Output(Model):
    """Place and name of the result, fixed before the job starts."""

    store: str
    name: ArtifactName
    code: str
    refresh: str = ""


C = TypeVar("C", bound=Model)
I = TypeVar("I", bound=Inputs)  # noqa: E741


class JobSpec(Model, Generic[C, I]):
    """Base of a job's spec.

    Class attributes:
        kind: "job" is a pure function of its spec, so an existing result is reused; an "effect" changes the world
            or reads what others change, so it always runs and its record gets a name of its own each time.
        environment: which lock file (`requirements/<environment>.txt`), and on a cluster which image, runs it.
        memory_key: the key of a recipe that is lowered where the job has run out of memory.
    """

    kind: ClassVar[Literal["job", "effect"]] = "job"
    environment: ClassVar[str] = "jobs"
    memory_key: ClassVar[str | None] = None

    job: str
    config: C
    inputs: I
    output: Output

    @classmethod
    def more_memory(cls, more: str = "give it more memory") -> str:
        """Return what to do where the job has run out of memory; `more`: how it gets more."""
        return more if cls.memory_key is None else f"lower {cls.memory_key}, or {more}"

    @classmethod
    def observe(cls, config: C, access: Access | None = None) -> C:
        """Return the configuration completed with what only the moment of planning knows; by default nothing.

        Whoever starts the job calls it once a try, before the output is named.

        Args:
            access: how S3 is reached; None: with this process's own credentials.
        """
        return config


def identity(value: Any) -> Any:
    """Return a model as plain JSON values without its `NOT_IDENTITY` fields, recursively."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: identity(item)
            for name, item in value
            if name not in fields or NOT_IDENTITY not in fields[name].metadata
        }
    if isinstance(value, dict):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    return value
