"""Limits on requests, and time-outs of arms and clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on what clients send and ask for.

    Attributes:
        body_bytes: of a request's body, unpacked.
        body_seconds: until it must have arrived.
        prompt_bytes: of a prompt, or of all messages; a token is at least one byte. Below it, the engine's own limit
            on tokens holds.
        answer_tokens: largest `max_tokens`; below it, the engine's own limit holds.
        bodies: read at the same time; one more is refused with Retry-After.
        requests: answered at the same time; one more is refused with Retry-After.
        rows: in one V2 `infer`.
        connections: held open at the same time, or as many as the process may have files open; one more is refused
            with Retry-After.
    """

    body_bytes: int = 1024 * 1024
    body_seconds: float = 30.0
    prompt_bytes: int = 64 * 1024
    answer_tokens: int = 4096
    bodies: int = 256
    requests: int = 256
    rows: int = 32
    connections: int = 4096


@dataclass(frozen=True)
class Timeouts:
    """Time-outs of an arm or a client, in seconds.

    Attributes:
        connect: until Triton takes the connection.
        first_token: until a stream's first piece.
        between_tokens: from one piece of a stream to the next.
        total: until a whole answer, or a stream's end; time spent on a client that reads slowly does not count.
        write: until a client has taken a piece; after it the client counts as gone.
        idle: until all headers of a connection's first request have come, or of its next one; after it the connection
            is closed.
    """

    connect: float = 2.0
    first_token: float = 30.0
    between_tokens: float = 15.0
    total: float = 50.0
    write: float = 30.0
    idle: float = 75.0
