"""The command line of a service: what is wrong with it is one sentence, and the exit code of a bad configuration."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import NoReturn

from include.errors import ConfigurationError, DataError, ExitCode

LOCAL = "127.0.0.1"


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


def listen(host: str, number: int) -> socket.socket:
    """The port that a service answers on, before anything else is begun: then nothing has to be undone.

    Raises:
        ConfigurationError: it cannot be had.
    """
    try:
        return socket.create_server((host, number))
    except OSError as error:
        raise ConfigurationError(
            f"port {number} on {host} cannot be had ({error.strerror}): end the process that listens "
            "there, or choose another port"
        ) from None


def read_token(path: Path) -> str:
    """The bearer token of the serving side. Raises ConfigurationError or DataError where there is none to be read."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"the token cannot be read from {path} ({error.strerror}): write one there, mode 0600"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text: write a token there, mode 0600") from None
    if not token:
        raise ConfigurationError(f"{path} is empty: write a token there, mode 0600")
    return token
