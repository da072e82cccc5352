"""The durable routes: which release takes which target's traffic, in one file that is replaced atomically."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from include.durable import fsync
from include.errors import ConfigurationError, DataError, first_problem
from include.model import Model
from include.specs.champion import ModelName

FILE = "router.json"
PREVIOUS = "router.json.previous"
LOCK = "router.lock"

# A model's name, its version, and the digest of what the release is made of.
ReleaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,159}$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Holder = Annotated[str, Field(min_length=1, max_length=300)]


class SlowSeconds(Model):
    """An answer counts as slow where it took longer, to its first token (streams) or to its end."""

    first_token: Seconds | None = None
    total: Seconds | None = None


class Split(Model):
    """Where a target's requests go.

    Attributes:
        champion: release that takes all requests that the canary does not.
        weight: the canary's share, in force only while the holder of the route keeps the lease.
        sample: share of the requests whose answers are kept to be judged.
    """

    champion: ReleaseName | None = None
    canary: ReleaseName | None = None
    weight: Share = 0.0
    sample: Share = 0.0
    slow_seconds: SlowSeconds = SlowSeconds()


class Route(Split):
    """A split as the router stores it.

    Attributes:
        generation: of the route; in a change, the generation that it is based on, 0 for a new target.
        holder: of the lease without which the weight is 0.
    """

    generation: Annotated[int, Field(ge=0)]
    holder: Holder | None = None


class _Routes(Model):
    format: Literal[1] = 1
    targets: dict[ModelName, Route] = {}


class RouteFile:
    """`router.json` in the serving folder, and the version before it in case that it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.previous = folder / PREVIOUS

    def read(self) -> tuple[dict[str, Route], Path | None]:
        """Return the routes by target, and the file that they were read from; None where there is none yet.

        Raises:
            DataError: neither of the files that exist can be read.
        """
        damages = []
        for path in (self.path, self.previous):
            try:
                return _Routes.model_validate_json(path.read_bytes()).targets, path
            except FileNotFoundError:
                continue
            except ValidationError as error:
                damages.append(f"{path} ({first_problem(error)})")
        if damages:
            raise DataError(
                f"no routes can be read from {' or '.join(damages)}: bring one of them back from a copy; or remove "
                "them, then no model is served until the canary controller has set the routes anew"
            )
        return {}, None

    def write(self, targets: dict[str, Route]) -> None:
        """Replace the file durably; a crash leaves the old routes or the new ones."""
        new = self.path.with_suffix(".json.new")
        new.write_bytes(_Routes(targets=targets).model_dump_json(indent=1).encode())
        fsync(new)
        if self._is_sound():
            older = self.previous.with_suffix(".previous.new")
            older.unlink(missing_ok=True)
            os.link(self.path, older)
            older.rename(self.previous)
        new.rename(self.path)
        fsync(self.path.parent)

    def _is_sound(self) -> bool:
        try:
            _Routes.model_validate_json(self.path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return False
        return True


def lock_folder(folder: Path) -> int:
    """Lock the folder against other routers until this process ends; return the descriptor that holds the lock.

    Raises:
        ConfigurationError: another router works on it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(
            f"another router keeps its routes in {folder}: end it, or give this one a folder of its own"
        ) from None
    return descriptor
