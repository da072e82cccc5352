"""`python -m jobs.promote.withdraw MODEL`: take the alias `champion` away from a model.

For a person, or the demo, who has taken the model out of service.
"""

from __future__ import annotations

import argparse
import sys

from include.errors import AnemoneError, ExitCode
from jobs.common.registry.aliases import CHAMPION, champion_version
from jobs.common.registry.client import connect, retryable


def withdraw(model: str) -> str | None:
    """Remove the alias `champion`, and return the version that had it, or None.

    Raises:
        ConfigurationError, TryAgainError: as `connect` and `retryable` do.
    """
    client = connect()
    with retryable(f"take the alias {CHAMPION} of {model} away"):
        former = champion_version(client, model)
        if former is not None:
            client.delete_registered_model_alias(model, CHAMPION)
    return former


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.promote.withdraw", description=__doc__)
    parser.add_argument("model", help="the registered model's name")
    given = parser.parse_args(arguments)
    try:
        former = withdraw(given.model)
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{given.model}: " + (f"version {former} was the champion" if former else "there was no champion"))
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
