"""A task that ends its run because that is what was decided, and not because something broke."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException

from include.notifications import Event


class DecisionError(AirflowFailException):
    """Ends the task red, without a retry.

    Attributes:
        event: which decision it was.
    """

    def __init__(self, message: str, *, event: Event) -> None:
        super().__init__(message)
        self.event = event
