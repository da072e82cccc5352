"""Triton's model repository: a release is added atomically, never changed, and removed atomically.

    engines/<first 16 of the digest>/              a verified private copy of the engine artifact's files
    models/<release>/config.pbtxt
    models/<release>/1/model.py, writer.py, …      with byte code, so that nothing is written there afterwards

A release's name says what it is made of: engine, code, configuration and drill. The same release gets the same name,
and a changed one another.
"""

from __future__ import annotations

import fcntl
import py_compile
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs.common.engine_runtime
from include.artifacts.manifest import FileEntry
from include.artifacts.naming import content_digest, digest, file_digest
from include.artifacts.store import Store
from include.durable import fsync, fsync_tree
from include.errors import ArtifactError
from include.release.rollouts import Drill, Release
from jobs.serving.triton.config import DEFAULT, Rehearsal, Serving, parse, render

MODELS = "models"
ENGINES = "engines"
CONFIG = "config.pbtxt"
VERSION = "1"

_HERE = Path(__file__).parent
_ENGINE_RUNTIME = Path(jobs.common.engine_runtime.__file__).parent


def install(
    folder: Path,
    release: Release,
    drill: Drill = "none",
    *,
    name: str | None = None,
    serving: Serving = DEFAULT,
    after_requests: int | None = None,
    after_seconds: float | None = None,
) -> str:
    """Put a release into the serving folder, unless it is there; this does not load it.

    Args:
        folder: the serving side's folder.
        name: what it is called where that does not follow from what it is made of here (see `release_name`).
        after_requests, after_seconds: when a drill begins to misbehave, where not at the usual time.

    Returns:
        The release's own name, by default `<model>-v<version>-<8 hex>`.

    Raises:
        ArtifactError: the engine's artifact, or the copy that was made of it before, is missing or altered.
    """
    folder = folder.absolute()
    chosen = {"after_requests": after_requests, "after_seconds": after_seconds}
    rehearsal = Rehearsal(drill=drill, **{key: value for key, value in chosen.items() if value is not None})
    name = name or release_name(release, rehearsal, serving)
    with _locked(folder):
        engine = _install_engine(folder, release)
        target = folder / MODELS / name
        if not target.exists():
            with _made(folder, target) as scratch:
                _write_model(scratch, target, render(name, engine, serving, rehearsal), _sources(drill))
    return name


def verify(folder: Path, release: Release) -> None:
    """Read an installed engine again before it is loaded: a disk does not keep its bytes for ever.

    Raises:
        ArtifactError: the copy is missing or altered.
    """
    target = folder.absolute() / ENGINES / release.engine.digest[:16]
    if _content_digest(target) != release.engine.digest:
        raise ArtifactError(
            f"{target} was altered after it was copied from {release.engine.uri}: unload the releases that use it, and "
            "remove the folder"
        )


def remove(folder: Path, name: str) -> None:
    """Remove a release, and its engine unless another release uses it. Triton must have unloaded it before."""
    folder = folder.absolute()
    with _locked(folder):
        _remove(folder, folder / MODELS / name)
        # Names, not paths: the folder may have been spelled otherwise when a release was installed.
        used = {_engine_of(path).name for path in (folder / MODELS).glob(f"*/{CONFIG}")}
        for engine in (folder / ENGINES).glob("*"):
            if engine.name not in used:
                _remove(folder, engine)


def release_name(release: Release, rehearsal: Rehearsal, serving: Serving) -> str:
    """Return the name that a release has inside Triton."""
    made_of = {
        "engine": release.engine.digest,
        "sources": {name: file_digest(path) for name, path in _sources(rehearsal.drill).items()},
        "serving": serving.model_dump(),
        "drill": rehearsal.model_dump() if rehearsal.drill != "none" else None,
    }
    return f"{release.model}-v{release.version}-{digest(made_of)[:8]}"


def _sources(drill: Drill) -> dict[str, Path]:
    """Return the source of each file of the version folder; a drill serves the same model as production does."""
    model = _HERE / "model.py"
    entry = {"model.py": model} if drill == "none" else {"model.py": _HERE / "drill.py", "served.py": model}
    beside = {"writer.py": _HERE, "text.py": _ENGINE_RUNTIME, "hardware.py": _ENGINE_RUNTIME}
    return {**entry, **{name: folder / name for name, folder in beside.items()}}


def _install_engine(folder: Path, release: Release) -> Path:
    engine = release.engine
    target = folder / ENGINES / engine.digest[:16]
    if target.exists():
        verify(folder, release)
        return target
    store, name = Store.of(engine.uri)
    with store.open_files(name, digest=engine.digest) as source, _made(folder, target) as scratch:
        # Only the files of the manifest, whose digest is checked on the copy: the folder may hold others.
        manifest = store.manifest(name)
        assert manifest is not None
        for entry in manifest.files:
            copy = scratch / entry.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / entry.path, copy)
        if _content_digest(scratch) != engine.digest:
            raise ArtifactError(f"{engine.uri} changed while it was copied: try again")
    return target


def _write_model(scratch: Path, target: Path, config: str, sources: dict[str, Path]) -> None:
    version = scratch / VERSION
    version.mkdir()
    (scratch / CONFIG).write_text(config, encoding="utf-8")
    for name, source in sources.items():
        copy = version / name
        shutil.copyfile(source, copy)
        # Byte code that Python itself writes would look to Triton like a changed version at the next load.
        py_compile.compile(
            str(copy),
            dfile=str(target / VERSION / name),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def _engine_of(config: Path) -> Path:
    found = parse(config.read_text(encoding="utf-8"), where=str(config))
    return Path(found.parameters["engine"].string_value)


def _content_digest(folder: Path) -> str:
    return content_digest(
        FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_digest(path))
        for path in folder.rglob("*")
        if path.is_file()
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".repository.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _made(folder: Path, target: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `target` atomically and durably when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch:
        made = scratch / target.name
        made.mkdir()
        yield made
        fsync_tree(made)
        made.rename(target)
        fsync(target.parent)


def _remove(folder: Path, target: Path) -> None:
    """Remove a folder atomically: it is moved away first."""
    if target.exists():
        with _scratch(folder) as scratch:
            target.rename(scratch / target.name)
            fsync(target.parent)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder on the same file system, and remove it afterwards with those that a crash left."""
    for left in folder.glob(".scratch-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        yield Path(scratch)
