"""Failures that a person can act on, and the exit codes that carry them between processes.

A job ends with one of these codes (BSD sysexits where one fits); the operator that started it turns the
code into retry or no retry. Every error message is one sentence: what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ExitCode(IntEnum):
    """How a job's process ends."""

    OK = 0
    BAD_CONFIGURATION = 64
    BAD_DATA = 65
    FAULT = 70
    TRY_AGAIN = 75
    KILLED = 137
    STOPPED = 143


class AnemoneError(Exception):
    """Base of every error whose message is meant for the user; `exit_code` is how a job ends on it."""

    exit_code: int = ExitCode.FAULT


class ConfigurationError(AnemoneError):
    """A spec, recipe, platform or Param that cannot be used as it stands. Retrying does not help."""

    exit_code = ExitCode.BAD_CONFIGURATION


class DataError(AnemoneError):
    """Input that cannot be read as what it claims to be. Retrying does not help."""

    exit_code = ExitCode.BAD_DATA


class ArtifactError(DataError):
    """An artifact that is missing, incomplete, altered, or written by a newer Anemone."""


class DivergenceError(AnemoneError):
    """Training that produced NaN, Inf, or never learned. Retrying the same run gives the same result."""

    exit_code = ExitCode.FAULT


class TryAgainError(AnemoneError):
    """A passing condition: a file still being written, a full disk, code that changed underneath."""

    exit_code = ExitCode.TRY_AGAIN


class StoppedError(AnemoneError):
    """The job was asked to stop (SIGTERM) and has saved what it could."""

    exit_code = ExitCode.STOPPED


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return what to write instead of an unknown name: the known one that is nearest, or a choice of all."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"


def first_problem(error: ValidationError, whole: str = "document") -> str:
    """Return the first of the problems that pydantic found, as "key.of.it: what is wrong".

    Args:
        whole: stands for the key where the problem is of the whole value.
    """
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
