"""Tells people what was decided, and what failed: one message a decision, through notifiers of Airflow's providers.

Who is told stands in the platform's YAML under `notifications`, or in a YAML list of the same form that
`ANEMONE_NOTIFICATIONS` names; with neither there are no callbacks at all. Texts among a notifier's arguments are Jinja
templates over `notification`:

    event      one of `include.notifications.Event`
    title      as in "gate failed: customize.data_quality_gate"
    sentence   the task's own last sentence: what, where, what to do
    dag_id, run_id, task_id
    url        the task in Airflow's web UI
    links      {name: address} of what the task links to; `link` is the first of them, the report where there is one

A receiver that is down costs a warning in the task's log, some seconds at the task's end, and nothing else: the task's
state is settled before anybody is told. Where a task's process was killed, Airflow's dag-processor tells it.

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
from typing import TYPE_CHECKING, Any

import yaml
from airflow.sdk import BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.log import redact
from pydantic import TypeAdapter, ValidationError

from include.errors import AnemoneError, ConfigurationError
from include.notifications import Event, Notification
from include.platforms import current_platform
from operators.errors import DecisionError
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

VARIABLE = "ANEMONE_NOTIFICATIONS"
"""Environment variable: path of a YAML that says who is told, instead of the platform's own list."""

_TOGETHER_SECONDS = 10.0
"""For all receivers at once. Airflow ends a task's process 20 s after its state is settled."""

_LONGEST = 1500
"""Characters of a sentence; a canary's reasons are the longest."""

_PLAIN = "{{ notification.title }}\n{{ notification.sentence }}\n{{ notification.url }}\n{{ notification.link }}"
_SLACK = (
    "*{{ notification.title }}*\n"
    "{{ notification.sentence.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;') }}\n"
    "{{ notification.url }}\n{{ notification.link }}"
)
_HTML = (
    '<p>{{ notification.sentence | e }}</p><p><a href="{{ notification.url | e }}">The task in Airflow</a>'
    "{% for name, address in notification.links.items() %} · "
    '<a href="{{ address | e }}">{{ name | e }}</a>{% endfor %}</p>'
)
_PROVIDERS = "airflow.providers."
_MESSAGES: dict[str, dict[str, str]] = {
    # SNS takes a subject of a hundred characters.
    "amazon.aws.notifications.sns.SnsNotifier": {"subject": "{{ notification.title[:100] }}", "message": _PLAIN},
    "amazon.aws.notifications.chime.ChimeNotifier": {"message": _PLAIN},
    "smtp.notifications.smtp.SmtpNotifier": {"subject": "{{ notification.title }}", "html_content": _HTML},
    "slack.notifications.slack.SlackNotifier": {"text": _SLACK},
    "slack.notifications.slack_webhook.SlackWebhookNotifier": {"text": _SLACK},
}
"""The message, for the notifiers that are known here."""

_log = logging.getLogger(__name__)


def failure_callbacks() -> dict[str, Any]:
    """For a DAG's `default_args`: tells of gates that fail, rollouts that go back, and any other failed task."""
    return {"on_failure_callback": [notify_failure]} if _receivers() else {}


def promotion_callbacks() -> dict[str, Any]:
    """For the task `promote`: tells what is live now."""
    return {"on_success_callback": [notify_promotion]} if _receivers() else {}


def notify_failure(context: Context) -> None:
    """Airflow's callback for a task that has failed for good."""
    error = context.get("exception")
    _tell(context, error.event if isinstance(error, DecisionError) else "run_failed", _sentence(error))


def notify_promotion(context: Context) -> None:
    """Airflow's callback for the task `promote`."""
    ti = context["ti"]
    try:
        store, name = store_of(ti.xcom_pull(task_ids=ti.task_id))
        record = store.read_json(name, "champion.json")
    except AnemoneError as error:
        _log.warning("nobody is told of the promotion: %s", error)
        return
    version, former = record["version"], record["former"]
    before = f"; before it was version {former}" if former not in (None, version) else ""
    _tell(context, "promoted", f"version {version} answers {record['model']} now{before}")


def _tell(context: Context, event: Event, sentence: str) -> None:
    """Send one message to each receiver of the event, all at once, and wait no longer than is decent."""
    receivers = [one for one in _receivers() if event in one.events]
    if not receivers:
        return
    facts = _facts(context, event, sentence)
    deadline = time.monotonic() + _TOGETHER_SECONDS
    # Daemons: one that hangs must not keep the task's process.
    threads = [threading.Thread(target=_send, args=(one, context, facts), daemon=True) for one in receivers]
    for thread in threads:
        thread.start()
    for one, thread in zip(receivers, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _log.warning(
                "%s did not take the message about %s within %.0f s: it may never get it; see that its receiver is up",
                one.notifier,
                facts["title"],
                _TOGETHER_SECONDS,
            )


def _send(receiver: Notification, context: Context | Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    try:
        # Each has a context of its own: a notifier writes its arguments into it.
        _notifier(receiver)({**context, "notification": facts})
    except Exception as error:
        _log.warning(
            "%s could not send the message about %s (%s: %s): see to its connection and its arguments",
            receiver.notifier,
            facts["title"],
            type(error).__name__,
            _one_line(str(error)),
        )
        return False
    _log.info("%s was told: %s", receiver.notifier, facts["title"])
    return True


def _notifier(receiver: Notification) -> BaseNotifier:
    module, _, name = receiver.notifier.rpartition(".")
    message = _MESSAGES.get(receiver.notifier.removeprefix(_PROVIDERS), {})
    return getattr(import_module(module), name)(**{**message, **receiver.arguments})


def _facts(context: Context, event: Event, sentence: str) -> dict[str, Any]:
    ti = context["ti"]
    links = _links(context)
    return {
        "event": event,
        "title": _one_line(f"{event.replace('_', ' ')}: {ti.dag_id}.{ti.task_id}"),
        "sentence": _one_line(sentence),
        "dag_id": ti.dag_id,
        "run_id": _one_line(ti.run_id),
        "task_id": ti.task_id,
        "url": ti.log_url,
        "links": links,
        "link": links.get("Report") or next(iter(links.values()), ""),
    }


def _links(context: Context) -> dict[str, str]:
    """What the task's page in the web UI links to."""
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    found = {}
    for link in context["ti"].task.operator_extra_links:
        try:
            address = link.get_link(context["ti"].task, ti_key=context["ti"])
        except Exception as error:
            _log.debug("no link %s: %s", link.name, error)
            continue
        if address:
            found[link.name] = f"{base}{address}" if address.startswith("/") else address
    return found


def _sentence(error: BaseException | str | None) -> str:
    """What the task said last. Errors that are not meant for people may quote what they choked on: only their kind."""
    if error is None:
        return "its process was killed, or its machine was lost: see the log, then clear the task"
    if isinstance(error, AirflowException | AnemoneError):
        return str(error)
    return f"it ended with a {type(error).__name__}: see the log"


def _one_line(text: str) -> str:
    """Without line breaks, control and invisible characters, and without what Airflow knows to be a secret."""
    plain = "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in str(redact(text)))
    line = " ".join(plain.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _receivers() -> list[Notification]:
    """Who is told. A list that cannot be read is logged: telling people must never keep a run from its work."""
    try:
        return configured()
    except ConfigurationError as error:
        _log.error("nobody is told of anything: %s", error)
        return []


def configured() -> list[Notification]:
    """Who is told.

    Raises:
        ConfigurationError: what `ANEMONE_NOTIFICATIONS` names cannot be read, or is no such list.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return list(current_platform().notifications)
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return TypeAdapter(list[Notification]).validate_python(document or [])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ConfigurationError(f"{path}, which {VARIABLE} names: {where}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path}, which {VARIABLE} names, cannot be read ({_one_line(str(error))}): mend it"
        ) from None


def main() -> int:
    """Send a test message to every receiver; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        receivers = configured()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not receivers:
        print(f"nobody is told of anything: set notifications in the platform's YAML, or {VARIABLE}")
    facts = {
        "event": "run_failed",
        "title": "a test of Anemone's notifications",
        "sentence": "nothing happened: this is a test",
        **dict.fromkeys(("dag_id", "run_id", "task_id", "url", "link"), ""),
        "links": {},
    }
    taken = [_send(one, {}, facts) for one in receivers]
    return 0 if all(taken) else 1


if __name__ == "__main__":
    sys.exit(main())
