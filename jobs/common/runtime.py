"""The frame of every job: read the spec, verify the inputs, commit the output, end with a verdict.

A job's `__main__` hands its function `run(job)` to `main`. Slow imports belong inside `run`, so that a wrong spec is
refused at once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import ValidationError

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.store import Store
from include.code_identity import IMAGE, code_identity
from include.errors import AnemoneError, ConfigurationError, ExitCode, StoppedError, TryAgainError, first_problem
from include.events import format_event
from include.home import PROJECT
from include.job_environment import ERROR_PREFIX, NODE_RANK, NODES, PRICE_PER_HOUR, TERMINATION_LOG
from include.specs import job_module, spec_class
from include.specs.base import Artifact, JobSpec
from jobs.common.metrics import exposed
from jobs.common.threads import limit_libraries

S = TypeVar("S", bound=JobSpec)

REVISION = "REVISION"
"""File of an image: the commit that it was built from, followed by `-dirty` where the checkout had other changes."""

_REPORTED_PACKAGES = ("torch", "transformers", "nemo-automodel", "nemo-curator", "great-expectations", "mlflow")


class Job(Generic[S]):
    """One run of a job.

    Attributes:
        spec: the work to do.
        output: folder for the artifact's files; only node 0's is committed.
        scratch: folder for everything else, deleted when the job ends.
        store: the output's; checkpoints are committed to it as artifacts of their own.
        metrics: figures for the artifact's manifest, to be filled by the job.
    """

    def __init__(self, spec: S, output: Path, events: Path, store: Store, scratch: Path, stack: ExitStack) -> None:
        self.spec = spec
        self.store = store
        self.output = output
        self.scratch = scratch
        self.metrics: dict[str, float | int | str | bool | None] = {}
        self._events = stack.enter_context(events.open("a", encoding="utf-8"))
        self._metrics = stack.enter_context(exposed(spec.job, spec.output.name))
        self._stack = stack
        self._opened: dict[Artifact, Path] = {}

    def input(self, name: str) -> Path:
        """Return the folder with the verified files of the input called `name` in the spec.

        Raises:
            ArtifactError: the artifact is gone, was altered, or is not the one that was planned.
        """
        return self.open(getattr(self.spec.inputs, name))

    def open(self, artifact: Artifact) -> Path:
        """Return the folder with the verified files of an artifact that an input refers to.

        Raises:
            ArtifactError: as `input` does.
        """
        if artifact not in self._opened:
            store, name = Store.of(artifact.uri)
            self._opened[artifact] = self._stack.enter_context(store.open_files(name, digest=artifact.digest))
        return self._opened[artifact]

    def event(self, event: str, **fields: Any) -> None:
        """Report progress: print one `key=value` line, and append the same to events.jsonl."""
        print(format_event(event, fields), flush=True)
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._events.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        self._events.flush()
        self._metrics.take(event, fields)


def main(name: str, run: Callable[[Job[Any]], None]) -> None:
    """Run job `name` as the whole work of this process, and exit with its verdict (see `include.errors.ExitCode`)."""
    parser = argparse.ArgumentParser(prog=f"python -m {job_module(name)}", description=spec_class(name).__doc__)
    parser.add_argument("--spec", required=True, metavar="URI", help="the job's spec, as JSON")
    arguments = parser.parse_args()
    limit_libraries()
    signal.signal(signal.SIGTERM, _stop)
    try:
        execute(load_spec(name, arguments.spec), run)
    except AnemoneError as error:
        _fail(error.exit_code, str(error))
    except Exception as error:
        if is_full_disk(error):
            where = getattr(error, "filename", None) or "the disk is full"
            _fail(ExitCode.TRY_AGAIN, f"no space left ({where}): free some, then clear this task")
        traceback.print_exc()
        if isinstance(error, MemoryError):
            _fail(ExitCode.KILLED, f"memory ran out: {spec_class(name).more_memory()}")
        _fail(ExitCode.FAULT, f"{type(error).__name__}: {error} (a bug, or an unforeseen case; the traceback is above)")


def load_spec(name: str, uri: str) -> JobSpec:
    """Read and validate a spec.

    Raises:
        ConfigurationError: names the key that is wrong.
        TryAgainError: there is no such spec.
    """
    try:
        folder, _, file = uri.rpartition("/")
        return spec_class(name).model_validate_json(Store(folder).read_file(file))
    except FileNotFoundError:
        raise TryAgainError(
            f"the spec {uri} does not exist, or its store cannot be reached: the next try writes it again"
        ) from None
    except ValidationError as error:
        raise ConfigurationError(f"the spec {uri} is not one of job {name}: {first_problem(error)}") from None


def execute(spec: JobSpec, run: Callable[[Job[Any]], None]) -> None:
    """Do the work of `spec` and commit its output, unless that exists.

    Raises:
        AnemoneError: the work cannot be done, for a reason that the user can act on.
        ConfigurationError: the image holds another code of the job than Airflow's side planned with.
        TryAgainError: the store cannot be reached any more, or the code changed since the plan.
    """
    image = os.environ.get(IMAGE)
    code = code_identity(spec.job, spec.environment, image=image)
    if code != spec.output.code and image is not None:
        raise ConfigurationError(
            f"the image {image} holds another code of job {spec.job} than Airflow's side has "
            f"(planned {spec.output.code[:12]}, found {code[:12]}): build both from one commit, then clear the task"
        )
    if code != spec.output.code:
        raise TryAgainError(
            f"the code of job {spec.job} changed between planning and start "
            f"(planned {spec.output.code[:12]}, found {code[:12]}): the next try plans anew"
        )
    store = Store(spec.output.store, existing=True)
    try:
        _execute(spec, run, store)
    except Exception:
        # An error of any kind may come from a store that is gone: a library sees only a file that it cannot find.
        store.check_reachable()
        raise


def _execute(spec: JobSpec, run: Callable[[Job[Any]], None], store: Store) -> None:
    if store.manifest(spec.output.name) is not None:
        print(format_event("reused", {"artifact": store.uri(spec.output.name)}), flush=True)
        return
    if os.environ.get(NODE_RANK, "0") != "0":
        _take_part(spec, run, store)
        return
    started = datetime.now(UTC)
    with ExitStack() as stack:
        attempt = stack.enter_context(store.attempt(spec.output.name))
        scratch = stack.enter_context(_scratch(spec))
        job = Job(spec, attempt.files, attempt.events, store, scratch, stack)
        job.event("started", job=spec.job, name=spec.output.name)
        run(job)
        provenance = record_provenance(started)
        job.event("finished", seconds=provenance.wall_seconds, cpu_seconds=provenance.cpu_seconds, **job.metrics)
        inputs = {
            key: InputEntry(uri=value.uri, digest=value.digest)
            for key, value in spec.inputs
            if isinstance(value, Artifact)
        }
        _, ours = attempt.commit(
            job=spec.job,
            inputs=inputs,
            config=spec.config.model_dump(mode="json"),
            code=spec.output.code,
            metrics=job.metrics,
            provenance=provenance,
        )
        print(format_event("committed" if ours else "reused", {"artifact": store.uri(spec.output.name)}), flush=True)


def _take_part(spec: JobSpec, run: Callable[[Job[Any]], None], store: Store) -> None:
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(spec))
        job = Job(spec, scratch / "output", scratch / "events.jsonl", store, scratch, stack)
        job.output.mkdir()
        job.event("started", job=spec.job, name=spec.output.name, node=os.environ[NODE_RANK])
        run(job)
        job.event("took_part", node=os.environ[NODE_RANK])


@contextmanager
def _scratch(spec: JobSpec) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"anemone-{spec.job}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(_signal: int, _frame: object) -> None:
    raise StoppedError("stopped on request (SIGTERM) before the artifact was complete: the next try makes it")


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether a full disk (ENOSPC, EDQUOT) is behind an error: libraries wrap the error, or quote its text."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            return True
        if os.strerror(ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    line = " ".join(message.split())
    print(f"{ERROR_PREFIX}{line}", file=sys.stderr, flush=True)
    if target := os.environ.get(TERMINATION_LOG):
        # Kubernetes keeps 4,096 bytes of it, and would cut it in the middle of a character.
        Path(target).write_bytes(line.encode()[:4000].decode(errors="ignore").encode())
    sys.exit(int(code))


def record_provenance(started: datetime) -> Provenance:
    """Return where and at what cost this process and its children have worked since `started`."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    now = datetime.now(UTC)
    seconds = (now - started).total_seconds()
    return Provenance(
        started=started,
        finished=now,
        wall_seconds=round(seconds, 3),
        cpu_seconds=round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
        peak_rss_bytes=max(own.ru_maxrss, children.ru_maxrss) * 1024,
        cost=_cost(seconds),
        host=socket.gethostname(),
        python=sys.version.split()[0],
        packages={name: found for name in _REPORTED_PACKAGES if (found := _version(name))},
        **_git(),
    )


def _cost(seconds: float) -> float | None:
    """Return the cost in US dollars of all nodes that do this job together; None where the platform gives no price."""
    price = os.environ.get(PRICE_PER_HOUR)
    if price is None:
        return None
    return round(float(price) * int(os.environ.get(NODES, "1")) * seconds / 3600, 6)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Return the commit: an image has a file that names it, a checkout is asked through git."""
    if (file := PROJECT / REVISION).is_file():
        revision = file.read_text(encoding="utf-8").strip()
        return {"git_sha": revision.removesuffix("-dirty"), "git_dirty": revision.endswith("-dirty")}

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    sha = git("rev-parse", "HEAD")
    return {"git_sha": sha, "git_dirty": bool(git("status", "--porcelain")) if sha else None}
