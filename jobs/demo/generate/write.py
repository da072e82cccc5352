"""`python -m jobs.demo.generate.write VARIANT --rows N --seed S --out FILE`: one variant of the demo's data as a file.

For a person, or the demo, to announce. The file appears whole: it is written under another name beside it first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from include.errors import AnemoneError, ExitCode
from include.specs.demo.generate import Config, Variant
from jobs.demo.generate.variants import lines


def write(config: Config, target: Path) -> int:
    """Write the data set to `target` in one rename, and return the number of lines.

    Raises:
        ConfigurationError: as `lines` does.
    """
    data = lines(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write("\n".join(data) + "\n")
            os.fchmod(stream.fileno(), 0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return len(data)


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.generate.write", description=__doc__)
    parser.add_argument("variant", choices=get_args(Variant))
    parser.add_argument("--rows", type=int, required=True, help="rows, before the defects of `rotten` are added")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--intents", nargs="+", metavar="INTENT", help="kinds of request; the demo's when left out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        config = Config(variant=given.variant, rows=given.rows, seed=given.seed, intents=given.intents)
        count = write(config, given.out)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"error: --{first['loc'][0]}: {first['msg']}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{given.out}: {count} lines")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
