"""The folder of everything that Anemone keeps on a laptop: made, marked as its own, and removed.

Standard library only, for any Python from 3.8 on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from include.home import PROJECT, home

MARKER = ".anemone-home"


class NotOursError(Exception):
    """A folder that would be filled or removed, but was not made by Anemone."""


def make_home() -> Path:
    """Create the home if need be and mark it as Anemone's own, so that `make clean` may remove it.

    Raises:
        NotOursError: the folder exists, holds something, and does not carry the mark.
    """
    path = home()
    marker = path / MARKER
    if not marker.exists():
        if path != PROJECT / ".anemone" and path.is_dir() and any(path.iterdir()):
            raise NotOursError(
                f"{path} holds files that Anemone did not make: point ANEMONE_HOME at a new or empty folder"
            )
        # Made once, here: a store that is missing later is away, and nobody writes into a new folder of its name.
        (path / "store").mkdir(parents=True, exist_ok=True)
        marker.write_text("Made by Anemone. `make clean` removes this folder with everything in it.\n")
    return path


def remove_home() -> Path:
    """Remove the home with everything in it; return where it was.

    Raises:
        NotOursError: the folder exists without the mark.
    """
    path = home()
    if path.is_dir():
        if not (path / MARKER).is_file():
            raise NotOursError(
                f"{path} does not carry the file {MARKER}, so Anemone did not make it: nothing was removed"
            )
        # The marker goes last, so that an interrupted removal can be taken up again.
        for entry in path.iterdir():
            if entry.name == MARKER:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(str(entry))
            else:
                entry.unlink()
        shutil.rmtree(str(path))
    return path


def python_of(environment: str) -> Path:
    """Return the interpreter of the environment `airflow`, `jobs`, `serving` or `bench`."""
    return home() / "venvs" / environment / "bin" / "python"


def run_folder() -> Path:
    """Return the folder of the records of running services, and of their logs."""
    return home() / "run"


def serving_folder() -> Path:
    """Return the serving side's folder: token, routes, rollouts, engines, Triton's model repository."""
    return home() / "serving"


def write_private(path: Path, text: str) -> None:
    """Write a file atomically that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
