"""The identity of a job's code: everything of it that can change the job's result, and nothing else.

That is the code of its package and its spec, the helpers of the project that these compute with, the versions of the
libraries that they import, and one number for what stores, tells and measures (`contract`). Read from the source text
and the lock file, so that the side that starts a job need not be able to import it.
"""

from __future__ import annotations

import platform
from typing import Any

from include.artifacts.naming import digest, file_digest
from include.code_identity.contract import CONTRACT_VERSION
from include.code_identity.libraries import every_version, versions
from include.code_identity.reach import reach
from include.errors import ConfigurationError
from include.home import PROJECT
from include.specs import job_place

IMAGE = "ANEMONE_IMAGE"
"""Environment variable: in a pod, the reference of the image that it was started from."""


def code_identity(job: str, environment: str, *, image: str | None = None) -> str:
    """Return the SHA-256 (hex) of what decides what `python -m jobs.<job>` makes of a spec.

    Comments, docstrings and formatting do not count, and neither does what only type checkers read.

    Args:
        environment: whose lock file it is.
        image: of the pod that runs the job. It stands for the libraries and the Python version, which the side that
            starts a pod cannot know. One that names a digest stands for exactly one set of libraries; a tag is
            trusted.

    Raises:
        ConfigurationError: the job has no package, or the environment no lock file.
    """
    place = job_place(job)
    folder = PROJECT.joinpath("jobs", *place)
    lock = PROJECT / f"requirements/{environment}.txt"
    if not folder.is_dir():
        raise ConfigurationError(f"the job {job!r} has a spec but no package: {folder} does not exist")
    if image is None and not lock.is_file():
        raise ConfigurationError(f"{lock} is missing: run `make lock`")
    reached = reach(PROJECT, folder, ".".join(("include", "specs", *place)))
    counts: dict[str, Any] = {
        "contract": CONTRACT_VERSION,
        "code": reached.code,
        "files": {path.relative_to(PROJECT).as_posix(): file_digest(path) for path in sorted(reached.files)},
    }
    if image is not None:
        return digest({**counts, "image": image})
    libraries = every_version(lock) if reached.everything else versions(lock, reached.libraries, reached.paths)
    return digest({**counts, "python": platform.python_version(), "libraries": libraries})
