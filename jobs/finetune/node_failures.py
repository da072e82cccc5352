"""How the nodes of a training fail, how a failure travels to the other nodes, and which failure explains the rest."""

from __future__ import annotations

from typing import Any

from include.errors import AnemoneError, ExitCode, StoppedError, TryAgainError
from jobs.common.runtime import is_full_disk
from jobs.finetune.hang import HangError


class NodeLostError(TryAgainError):
    """A node is gone."""


class EndedWithPeerError(AnemoneError):
    """This node's ranks were ended because another node failed, whose log says why."""


class RankKilledError(AnemoneError):
    """A rank was ended by a signal; `exit_code` is 128 + its number, as in a shell."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerError(AnemoneError):
    """The failure of another node, which became this one's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ended_with_peer() -> EndedWithPeerError:
    """Return the error of a node whose ranks were ended because another node failed."""
    return EndedWithPeerError("ended because another node failed: its log says why")


def as_message(error: Exception) -> dict[str, Any]:
    """Return an error as JSON for the other nodes."""
    full = is_full_disk(error)
    message = str(error) if isinstance(error, AnemoneError) else f"{type(error).__name__}: {error}"
    return {
        "kind": type(error).__name__,
        "message": " ".join(message.split()),
        "exit_code": int(getattr(error, "exit_code", ExitCode.TRY_AGAIN if full else ExitCode.FAULT)),
        "priority": list(priority(error)),
        "stopping": isinstance(error, StoppedError),
    }


def priority(error: Exception) -> tuple[float, ...]:
    """Return a sort key: the lower, the likelier an error is the cause of the others.

    A node whose peer is gone fails, too, with an error of any kind.
    """
    match error:
        case HangError():
            return (1, not error.stopped, -error.silent)
        case NodeLostError():
            return (2,)
        case TryAgainError() | RankKilledError():
            return (3,)
        case StoppedError():
            return (4,)
        case EndedWithPeerError():
            return (6,)
        case AnemoneError() | OSError():
            return (0,)
    return (5,)
