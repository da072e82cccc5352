"""The command line of a service, which ends on a bad configuration with one line of error and its exit code."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import NoReturn

from include.errors import ConfigurationError, DataError, ExitCode

LOCAL = "127.0.0.1"


class Parser(argparse.ArgumentParser):
    """Exits with 64 (EX_USAGE of sysexits.h) where argparse itself exits with 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(ExitCode.BAD_CONFIGURATION)


def port(text: str) -> int:
    """Parse an argument that names a port.

    Some servers take a number beyond the last port modulo 65536.

    Raises:
        argparse.ArgumentTypeError: it is not a number from 1 to 65535.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return int(text)


def listen(host: str, number: int) -> socket.socket:
    """Return a listening socket: opened before anything else, so that nothing has to be undone.

    Raises:
        ConfigurationError: the port is taken, or may not be used.
    """
    try:
        return socket.create_server((host, number))
    except OSError as error:
        raise ConfigurationError(
            f"port {number} on {host} cannot be opened ({error.strerror}): end the process that listens "
            "there, or choose another port"
        ) from None


def read_token(path: Path) -> str:
    """Return the bearer token of the serving side.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
        DataError: it is not text.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"the token cannot be read from {path} ({error.strerror}): see that its secret or volume is mounted, or "
            "write one there, mode 0600"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text: write a token there, mode 0600") from None
    if not token:
        raise ConfigurationError(f"{path} is empty: write a token there, mode 0600")
    return token
