"""The plan of one job, the same wherever it runs: validate, name the output, reuse, write the spec, judge the end.

Knows nothing of Airflow: an operator has one plan and adds only its own way to start a process, a pod, or several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from include.artifacts.manifest import Manifest
from include.artifacts.naming import artifact_name
from include.artifacts.store import Store, split_uri
from include.artifacts.uses import Run, note_uses
from include.code_identity import code_identity
from include.errors import AnemoneError, ArtifactError, ConfigurationError, ExitCode, TryAgainError, first_problem
from include.specs import spec_class
from include.specs.base import JobSpec, identity

_PERMANENT = {ExitCode.BAD_CONFIGURATION, ExitCode.BAD_DATA, ExitCode.FAULT}


class JobFailedError(AnemoneError):
    """A job ended without its artifact.

    Attributes:
        retryable: whether the same job can succeed in another try.
        exit_code: of its process, where that failed; else that of a fault.
    """

    def __init__(self, message: str, *, retryable: bool, exit_code: int = ExitCode.FAULT) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.exit_code = exit_code


@dataclass(frozen=True)
class JobPlan:
    """One validated job with the name of its output."""

    spec: JobSpec
    store: Store

    @classmethod
    def prepare(
        cls,
        job: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str | None],
        store: Store,
        refresh: str = "",
        run: Run | None = None,
        image: str | None = None,
        store_of: Callable[[str], tuple[Store, str]] = Store.of,
    ) -> JobPlan:
        """Validate a job and name its output, before anything starts.

        Args:
            job: the verb, as in `python -m jobs.<job>`.
            config: its configuration, as in a recipe's section.
            inputs: artifact URI by input name; None for an optional input that this run does not have.
            store: of the output.
            refresh: salt that gives an otherwise equal job another name, so that it runs again.
            run: that the job is planned for; its inputs and its output are recorded as used by the run.
            image: of the pod that will run the job; None for a process of this machine.
            store_of: opens the store of an input that is in another store.

        Raises:
            ConfigurationError: a key or value that the job does not take.
            ArtifactError: an input that does not exist or was altered.
        """
        cls_ = spec_class(job)
        if run is not None:
            note_uses(store, run, _names_in(store, inputs))
        draft = {
            "job": job,
            "config": dict(config),
            "inputs": {name: _pin(store, uri, store_of) for name, uri in inputs.items() if uri is not None},
            "output": {
                "store": store.root,
                "name": "unnamed",
                "code": code_identity(job, cls_.environment, image=image),
                "refresh": refresh,
            },
        }
        try:
            spec = cls_.model_validate(draft)
        except ValidationError as error:
            raise ConfigurationError(f"job {job}: {first_problem(error)}") from None
        spec = spec.model_copy(update={"config": cls_.observe(spec.config, store.access)})
        output = spec.output.model_copy(update={"name": _name(spec)})
        if run is not None:
            note_uses(store, run, [output.name])
        return cls(spec.model_copy(update={"output": output}), store)

    @classmethod
    def stored(cls, uri: str, store: Store) -> JobPlan:
        """Return the plan of a spec that `write_spec` has written: for a job that outlives the planning process.

        Raises:
            TryAgainError: the spec does not exist any more, or was written by another version of the project.
        """
        try:
            document = store.read_file(uri.removeprefix(f"{store.root}/"))
        except FileNotFoundError:
            raise TryAgainError(f"the spec {uri} is gone from the store: the next try plans the job again") from None
        try:
            return cls(spec_class(json.loads(document)["job"]).model_validate_json(document), store)
        except ValidationError:
            raise TryAgainError(
                f"the spec {uri} was written by another version: the next try plans the job again"
            ) from None

    @property
    def name(self) -> str:
        return self.spec.output.name

    @property
    def uri(self) -> str:
        return self.store.uri(self.name)

    def committed(self) -> Manifest | None:
        """Return the output's manifest, if it exists; a damaged one is an ArtifactError, no reason to run again."""
        return self.store.manifest(self.name)

    def write_spec(self) -> str:
        """Write the spec to the store, for the job to read. Return its URI."""
        return self.store.write_spec(self.name, self.spec.model_dump_json(indent=1))

    def conclude(self, exit_code: int, failure_message: str | None) -> Manifest:
        """Return the output of a job that has ended: success is exit 0 *and* a manifest that verifies.

        Args:
            exit_code: of the job's process; 128 + n where signal n ended it.
            failure_message: the job's own, if it left one.

        Raises:
            JobFailedError: it did not succeed; says why, and whether to try again.
        """
        job = self.spec.job
        if exit_code == ExitCode.OK:
            manifest = self.committed()
            if manifest is None:
                raise JobFailedError(f"job {job} ended well but left no artifact at {self.uri}", retryable=True)
            return manifest
        if exit_code == ExitCode.KILLED:
            message = (
                f"job {job} was killed (exit 137): most often memory ran out; {self.spec.more_memory()}, or stop what "
                "else runs here"
            )
            raise JobFailedError(message, retryable=True, exit_code=exit_code)
        message = failure_message or f"job {job} ended with exit code {exit_code} and no message: read its log above"
        raise JobFailedError(message, retryable=exit_code not in _PERMANENT, exit_code=exit_code)


def _names_in(store: Store, inputs: Mapping[str, str | None]) -> list[str]:
    """Return the names of the inputs that are in `store`."""
    found = [split_uri(uri) for uri in inputs.values() if uri is not None]
    return [name for root, name in found if root == store.root]


def _pin(store: Store, uri: str, store_of: Callable[[str], tuple[Store, str]]) -> dict[str, str]:
    root, name = split_uri(uri)
    manifest = (store if root == store.root else store_of(uri)[0]).manifest(name)
    if manifest is None:
        raise ArtifactError(f"{uri} does not exist: clear the task that makes it, and those after it")
    return {"uri": uri, "digest": manifest.content_digest}


def _name(spec: JobSpec) -> str:
    if spec.kind == "effect":
        return f"{spec.job}-{uuid4().hex[:20]}"
    facts = {"config": identity(spec.config), "inputs": identity(spec.inputs)}
    if spec.output.refresh:
        facts["refresh"] = spec.output.refresh
    return artifact_name(spec.job, code=spec.output.code, identity=facts)
