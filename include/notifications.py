"""Who is notified of which decisions: configuration only; the secrets are in Airflow's connections."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from include.model import Model

Event = Literal["gate_failed", "promoted", "rolled_back", "inconclusive", "refused", "run_failed"]
"""`inconclusive`: a canary was rolled back for lack of evidence. `refused`: it was not even loaded."""

EVENTS: tuple[Event, ...] = get_args(Event)


class Notification(Model):
    """One receiver.

    Attributes:
        notifier: import path of a notifier, one of Airflow's providers' or your own.
        arguments: of the notifier; texts may be Jinja templates over `notification` (see `operators.notifications`).
            The notifiers that are listed there need no argument for the message itself.
        events: that it is notified of.
    """

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    arguments: dict[str, Any] = {}
    events: tuple[Event, ...] = EVENTS
