"""Files that people write: recipes, platforms, suites, templates. One that cannot be read is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from include.errors import ConfigurationError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: reading all recipes takes a tenth of the time, at each parse of a form."""


def read_text(path: Path, what: str) -> str:
    """Return what a text file holds.

    Args:
        what: the file, as the message calls it.

    Raises:
        ConfigurationError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(what, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _unreadable(what, f"not UTF-8: {error.reason} at byte {error.start}") from None


def read_yaml(path: Path, what: str) -> Any:
    """Return what a YAML file holds. Raises what `read_text` does, also where it is no YAML."""
    text = read_text(path, what)
    try:
        return yaml.load(text, _LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise _unreadable(what, f"no YAML: {where}{error.problem or error.context}") from None
    # ValueError: a date that there is not, for instance.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(what, f"no YAML: {error}") from None


def read_json(path: Path, what: str) -> Any:
    """Return what a JSON file holds. Raises what `read_text` does, also where it is no JSON."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(what, f"no JSON: {error}") from None


def _unreadable(what: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{what} cannot be read ({' '.join(reason.split())}): correct the file")
