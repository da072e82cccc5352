"""Errors of a request: those that its client gets, and those of an arm."""

from __future__ import annotations


class RequestError(Exception):
    """The error that a client gets instead of an answer; each protocol writes it in its own format.

    Attributes:
        status: of HTTP.
        field: the field of the request that is wrong, where it is one.
        code: a stable word for programs, where there is one.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, message: str, *, field: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.retry_after = retry_after


class RejectedError(Exception):
    """The model says that the request itself is wrong; the message is the model's own."""


class ArmError(Exception):
    """An arm did not answer as it should.

    Attributes:
        status: for the client: 502 (an error, or a malformed answer), 503 (not reached, full), 504 (too late).
        retriable: the connection broke, or the release is not there, so that asking again makes sense.
    """

    def __init__(self, status: int, reason: str, *, retriable: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.retriable = retriable
