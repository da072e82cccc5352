"""What can be told to people, and to whom: configuration only, without secrets (these are Airflow connections)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from include.specs.base import Model

Event = Literal["gate_failed", "promoted", "rolled_back", "inconclusive", "refused", "run_failed"]
"""`inconclusive`: a canary went back for want of evidence. `refused`: it was not even loaded."""

EVENTS: tuple[Event, ...] = get_args(Event)


class Notification(Model):
    """One receiver.

    Attributes:
        notifier: path of a notifier's class, of one of Airflow's providers or of one's own.
        arguments: its arguments; texts may be Jinja templates over `notification` (see `operators.notifications`).
            For the classes known there the message itself need not be given.
        events: which it is told of.
    """

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    arguments: dict[str, Any] = {}
    events: tuple[Event, ...] = EVENTS
