"""Notifications of decisions and failures: one message each, through notifiers of Airflow's providers.

The receivers are the platform's `notifications`, or a YAML list of the same form in the file that
`ANEMONE_NOTIFICATIONS` names; with neither there are no callbacks at all. Texts among a notifier's arguments are Jinja
templates over `notification`:

    event      one of `include.notifications.Event`
    title      as in "gate failed: customize.data_quality_gate"
    message    the task's own error message: what, where, what to do; also under its former name, `sentence`
    dag_id, run_id, task_id
    url        the task in Airflow's web UI
    links      {name: address} of the task's links; `link` is the report's, or the first

A receiver that does not answer costs a warning in the task's log and some seconds at the task's end, and nothing else:
the task's state is final before any message is sent. Where a task's process was killed, Airflow's dag-processor sends
it.

`python -m operators.notifications` sends every receiver a test message.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from airflow.sdk import BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.log import redact
from pydantic import TypeAdapter, ValidationError

from include.errors import AnemoneError, ConfigurationError, first_problem
from include.notifications import Event, Notification
from include.platforms import current_platform
from operators.errors import DecisionError
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

VARIABLE = "ANEMONE_NOTIFICATIONS"
"""Environment variable: path of a YAML list of receivers, instead of the platform's own."""

_SEND_SECONDS = 10.0
"""For all receivers together. Airflow ends a task's process 20 s after its state is final."""

_MAX_CHARACTERS = 1500
"""Of an error message; a canary's reasons are the longest."""

_PLAIN = "{{ notification.title }}\n{{ notification.message }}\n{{ notification.url }}\n{{ notification.link }}"
_SLACK = (
    "*{{ notification.title }}*\n"
    "{{ notification.message.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;') }}\n"
    "{{ notification.url }}\n{{ notification.link }}"
)
_HTML = (
    '<p>{{ notification.message | e }}</p><p><a href="{{ notification.url | e }}">The task in Airflow</a>'
    "{% for name, address in notification.links.items() %} · "
    '<a href="{{ address | e }}">{{ name | e }}</a>{% endfor %}</p>'
)
_PROVIDERS = "airflow.providers."
_MESSAGES: dict[str, dict[str, str]] = {
    # SNS takes subjects of up to a hundred characters.
    "amazon.aws.notifications.sns.SnsNotifier": {"subject": "{{ notification.title[:100] }}", "message": _PLAIN},
    "amazon.aws.notifications.chime.ChimeNotifier": {"message": _PLAIN},
    "smtp.notifications.smtp.SmtpNotifier": {"subject": "{{ notification.title }}", "html_content": _HTML},
    "slack.notifications.slack.SlackNotifier": {"text": _SLACK},
    "slack.notifications.slack_webhook.SlackWebhookNotifier": {"text": _SLACK},
}
"""Arguments with the message, by notifier, for those that need none of their own."""

_log = logging.getLogger(__name__)


def failure_callbacks() -> dict[str, Any]:
    """Return callbacks for a DAG's `default_args`, which report failed gates, rollouts and other tasks."""
    return {"on_failure_callback": [notify_failure]} if _receivers() else {}


def promotion_callbacks() -> dict[str, Any]:
    """Return callbacks for the task `promote`, which report what is live now."""
    return {"on_success_callback": [notify_promotion]} if _receivers() else {}


def notify_failure(context: Context) -> None:
    """Report a task that has failed for good. A callback of Airflow's."""
    error = context.get("exception")
    _notify(context, error.event if isinstance(error, DecisionError) else "run_failed", _error_message(error))


def notify_promotion(context: Context) -> None:
    """Report what the task `promote` has made the champion. A callback of Airflow's."""
    ti = context["ti"]
    try:
        store, name = store_of(ti.xcom_pull(task_ids=ti.task_id))
        record = store.read_json(name, "champion.json")
    except AnemoneError as error:
        _log.warning("no notification of the promotion is sent: %s", error)
        return
    version, former = record["version"], record["former"]
    before = f"; before it was version {former}" if former not in (None, version) else ""
    _notify(context, "promoted", f"version {version} answers {record['model']} now{before}")


def _notify(context: Context, event: Event, message: str) -> None:
    """Send one message to each receiver of the event, all at the same time, within `_SEND_SECONDS`."""
    receivers = [receiver for receiver in _receivers() if event in receiver.events]
    if not receivers:
        return
    facts = _facts(context, event, message)
    deadline = time.monotonic() + _SEND_SECONDS
    # Daemons: one that hangs must not keep the task's process alive.
    threads = [threading.Thread(target=_send, args=(receiver, context, facts), daemon=True) for receiver in receivers]
    for thread in threads:
        thread.start()
    for receiver, thread in zip(receivers, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _log.warning(
                "%s did not take the message about %s within %.0f s: it may never get it; check its receiver",
                receiver.notifier,
                facts["title"],
                _SEND_SECONDS,
            )


def _send(receiver: Notification, context: Context | Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Send one message. Return whether the notifier has taken it."""
    try:
        # A context of its own: a notifier writes its arguments into it.
        _notifier(receiver)({**context, "notification": facts})
    except Exception as error:
        _log.warning(
            "%s could not send the message about %s (%s: %s): check its connection and its arguments",
            receiver.notifier,
            facts["title"],
            type(error).__name__,
            _one_line(str(error)),
        )
        return False
    _log.info("%s has taken the message: %s", receiver.notifier, facts["title"])
    return True


def _notifier(receiver: Notification) -> BaseNotifier:
    module, _, name = receiver.notifier.rpartition(".")
    message = _MESSAGES.get(receiver.notifier.removeprefix(_PROVIDERS), {})
    return getattr(import_module(module), name)(**{**message, **receiver.arguments})


def _facts(context: Context, event: Event, message: str) -> dict[str, Any]:
    ti = context["ti"]
    links = _links(context)
    return {
        "event": event,
        "title": _one_line(f"{event.replace('_', ' ')}: {ti.dag_id}.{ti.task_id}"),
        **_message_fields(_one_line(message)),
        "dag_id": ti.dag_id,
        "run_id": _one_line(ti.run_id),
        "task_id": ti.task_id,
        "url": ti.log_url,
        "links": links,
        "link": links.get("Report") or next(iter(links.values()), ""),
    }


def _message_fields(message: str) -> dict[str, str]:
    """Return the message by the names that templates have for it; version 0.1 had `sentence` only."""
    return {"message": message, "sentence": message}


def _links(context: Context) -> dict[str, str]:
    """Return {name: address} of the links on the task's page."""
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    found = {}
    # Airflow's own way from a link to its task, in a process that knows the task instance and not its key.
    ti_key = cast("TaskInstanceKey", context["ti"])
    for link in context["ti"].task.operator_extra_links:
        try:
            address = link.get_link(context["ti"].task, ti_key=ti_key)
        except Exception as error:
            _log.debug("no link %s: %s", link.name, error)
            continue
        if address:
            found[link.name] = f"{base}{address}" if address.startswith("/") else address
    return found


def _error_message(error: BaseException | str | None) -> str:
    """Return the task's error message; of an error that may quote data, only its type."""
    if error is None:
        return "its process was killed, or its machine was lost: read the log, then clear the task"
    if isinstance(error, AirflowException | AnemoneError):
        return str(error)
    return f"it ended with a {type(error).__name__}: read the log"


def _one_line(text: str) -> str:
    """Return a text without line breaks, control and invisible characters, and without Airflow's secrets."""
    plain = "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in str(redact(text)))
    line = " ".join(plain.split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[: _MAX_CHARACTERS - 1]}…"


def _receivers() -> list[Notification]:
    """Return the receivers. A list that cannot be read is logged, and never keeps a run from its work."""
    try:
        return configured()
    except ConfigurationError as error:
        _log.error("no notifications are sent: %s", error)
        return []


def configured() -> list[Notification]:
    """Return the receivers.

    Raises:
        ConfigurationError: the file that `ANEMONE_NOTIFICATIONS` names cannot be read, or holds no such list.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return list(current_platform().notifications)
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return TypeAdapter(list[Notification]).validate_python(document or [])
    except ValidationError as error:
        raise ConfigurationError(f"{path}, which {VARIABLE} names: {first_problem(error)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path}, which {VARIABLE} names, cannot be read ({_one_line(str(error))}): correct it"
        ) from None


def main() -> int:
    """Send a test message to every receiver. Return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        receivers = configured()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not receivers:
        print(f"there are no receivers: set notifications in the platform's YAML, or {VARIABLE}")
    facts = {
        "event": "run_failed",
        "title": "a test of Anemone's notifications",
        **_message_fields("nothing happened: this is a test"),
        **dict.fromkeys(("dag_id", "run_id", "task_id", "url", "link"), ""),
        "links": {},
    }
    taken = [_send(receiver, {}, facts) for receiver in receivers]
    return 0 if all(taken) else 1


if __name__ == "__main__":
    sys.exit(main())
