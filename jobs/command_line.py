"""The command line of a service: what is wrong with it is one sentence, and the exit code of a bad configuration."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from include.errors import ExitCode


class Parser(argparse.ArgumentParser):
    """Ends with 64 (EX_USAGE) where argparse alone would end with 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(ExitCode.BAD_CONFIGURATION)


def port(text: str) -> int:
    """The type of an argument that names a port: some servers take a number beyond the last one modulo 65536."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return int(text)
