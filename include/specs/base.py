"""What every job's spec has in common: typed configuration, input artifacts, output name.

A job's own module in this package defines `Config`, `Inputs` and `Spec`. Fields that cannot change the result
(workers, logging, places) are marked `NOT_IDENTITY`; all others, and the content digests of the inputs, make up
the output's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel

from include.artifacts.manifest import ArtifactName, Sha256
from include.model import Model

if TYPE_CHECKING:
    from include.artifacts.s3 import Access


class _NotIdentity:
    def __repr__(self) -> str:
        return "NOT_IDENTITY"


NOT_IDENTITY = _NotIdentity()
"""Marks a field that cannot change a job's result: `workers: Annotated[int, NOT_IDENTITY] = 1`."""


class Artifact(Model):
    """An input: where to read it, and which bytes were planned with."""

    uri: Annotated[str, NOT_IDENTITY]
    digest: Sha256


class Inputs(Model):
    """Base of a job's inputs: every field is an `Artifact` or `Artifact | None`."""


class Output(Model):
    """Where the result goes and what it will be called; fixed before the job starts."""

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
    """

    kind: ClassVar[Literal["job", "effect"]] = "job"
    environment: ClassVar[str] = "jobs"

    job: str
    config: C
    inputs: I
    output: Output

    @classmethod
    def observe(cls, config: C, access: Access | None = None) -> C:
        """Return the configuration completed with what only the moment of planning knows; by default nothing.

        Whoever starts the job calls it once a try, before the output is named.

        Args:
            access: how S3 is reached; None: with this process's own credentials.
        """
        return config


def identity(value: Any) -> Any:
    """A model as plain JSON values without its `NOT_IDENTITY` fields, recursively."""
    if isinstance(value, BaseModel):
        return {
            name: identity(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if NOT_IDENTITY not in field.metadata
        }
    if isinstance(value, dict):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    return value
