"""Notifications, from a task's end to real receivers on this machine."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.log import mask_secret

from include.artifacts.store import Store
from operators import notifications
from operators.errors import DecisionError
from operators.gates.sensor import GateSensor

SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
SLACK = "airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier"


class Mailbox(socketserver.ThreadingTCPServer):
    """An SMTP server that keeps what it gets; `silent`: one that accepts and never says a word."""

    daemon_threads = True

    def __init__(self, *, silent: bool = False) -> None:
        self.mails: list[EmailMessage] = []
        self.over = threading.Event()
        mailbox = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                if silent:
                    mailbox.over.wait()
                    return
                self._say("220 mailbox")
                while line := self.rfile.readline():
                    command = line.split()[0].upper()
                    if command == b"DATA":
                        self._say("354 go on")
                        lines = []
                        while (part := self.rfile.readline()) != b".\r\n":
                            lines.append(part.removeprefix(b"."))
                        mailbox.mails.append(message_from_bytes(b"".join(lines), policy=policy.default))
                    self._say("221 bye" if command == b"QUIT" else "250 fine")
                    if command == b"QUIT":
                        return

            def _say(self, text: str) -> None:
                self.wfile.write(text.encode() + b"\r\n")

        super().__init__(("127.0.0.1", 0), Handler)


class Webhook(ThreadingHTTPServer):
    """Keeps the texts that are posted to it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def do_POST(self) -> None:
                webhook.texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Any]]:
    """Start a server, and stop it after the test."""
    running = []

    def start(server: Any) -> Any:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        if isinstance(server, Mailbox):
            server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An Airflow connection to a server, from the environment."""

    def to(name: str, server: Any, **more: Any) -> None:
        host, port = server if isinstance(server, tuple) else server.server_address
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({"host": host, "port": port, **more}))

    return to


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the receivers."""

    def write(*receivers: dict[str, Any]) -> None:
        path = tmp_path / "notifications.yaml"
        path.write_text(yaml.safe_dump(list(receivers)))
        monkeypatch.setenv(notifications.VARIABLE, str(path))

    return write


@pytest.fixture
def mailbox(serve: Callable, connect: Callable) -> Mailbox:
    server = serve(Mailbox())
    connect("SMTP_DEFAULT", server, conn_type="smtp", extra={"disable_ssl": True, "disable_tls": True})
    return server


@pytest.fixture
def webhook(serve: Callable, connect: Callable) -> Webhook:
    server = serve(Webhook())
    host, port = server.server_address
    connect("SLACK_DEFAULT", (f"http://{host}:{port}", None), conn_type="slackwebhook", password="T/B/x")
    return server


MAIL = {"notifier": SMTP, "arguments": {"from_email": "anemone@example.org", "to": "night@example.org"}}
CHAT = {"notifier": SLACK}


def context(task: BaseOperator, error: BaseException | None = None) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="customize",
        run_id="manual__1",
        task_id=task.task_id,
        map_index=-1,
        log_url=f"http://127.0.0.1:8080/dags/customize/runs/manual__1/tasks/{task.task_id}",
        task=task,
    )
    return {"ti": ti, **({"exception": error} if error else {})}


def gate(store: Store) -> GateSensor:
    return GateSensor(task_id="data_quality_gate", gate="data_quality", artifact=store.uri("check-1"))


def stopped(store: Store, commit: Callable[..., Any], reason: str) -> dict[str, Any]:
    """The context after a real gate has said no."""
    expectation = {"name": "rows", "success": False, "observed": 1, "limit": 5, "message": reason}
    commit("check-1", {"result.json": json.dumps({"success": False, "rows": 1, "expectations": [expectation]})})
    with pytest.raises(DecisionError) as failure:
        gate(store).execute({})
    return context(gate(store), failure.value)


def test_without_configuration_there_are_no_callbacks() -> None:
    assert notifications.failure_callbacks() == {}
    assert notifications.promotion_callbacks() == {}


def test_a_gate_that_fails_is_one_mail_and_one_chat_message(
    configure: Callable, mailbox: Mailbox, webhook: Webhook, store: Store, commit: Callable
) -> None:
    configure(MAIL, CHAT)
    (notify,) = notifications.failure_callbacks()["on_failure_callback"]
    notify(stopped(store, commit, "only <1> row & no more"))
    (mail,) = mailbox.mails
    assert (mail["To"], mail["Subject"]) == ("night@example.org", "gate failed: customize.data_quality_gate")
    html = next(part.get_content() for part in mail.walk() if part.get_content_type() == "text/html")
    assert "only &lt;1&gt; row &amp; no more" in html
    assert "/dags/customize/runs/manual__1/tasks/data_quality_gate" in html
    assert "/anemone/artifacts/check-1/" in html
    (text,) = webhook.texts
    assert text.startswith("*gate failed: customize.data_quality_gate*\n")
    assert "only &lt;1&gt; row &amp; no more" in text
    assert "/dags/customize/runs/manual__1/tasks/data_quality_gate" in text


@pytest.mark.parametrize(
    ("error", "title", "sentence"),
    [
        (DecisionError("rolled back: it was slow", event="rolled_back"), "rolled back", "it was slow"),
        (DecisionError("inconclusive: 3 requests", event="inconclusive"), "inconclusive", "3 requests"),
        (AirflowException("the disk is full"), "run failed", "the disk is full"),
        (ValueError("a row of the data set"), "run failed", "it ended with a ValueError: read the log"),
        (None, "run failed", "its process was killed, or its machine was lost"),
    ],
)
def test_each_end_is_told_as_what_it_is(
    configure: Callable, webhook: Webhook, error: BaseException | None, title: str, sentence: str
) -> None:
    configure(CHAT)
    notifications.notify_failure(context(BaseOperator(task_id="canary"), error))
    (text,) = webhook.texts
    assert text.startswith(f"*{title}: customize.canary*")
    assert sentence in text
    assert "a row of the data set" not in text


def test_a_promotion_says_what_is_live(configure: Callable, webhook: Webhook, store: Store, commit: Callable) -> None:
    configure(CHAT)
    commit("promote-1", {"champion.json": json.dumps({"model": "kubectl", "version": "2", "former": "1"})})
    promoted = context(BaseOperator(task_id="promote"))
    promoted["ti"].xcom_pull = lambda task_ids: {"promote": store.uri("promote-1")}[task_ids]
    (notify,) = notifications.promotion_callbacks()["on_success_callback"]
    notify(promoted)
    (text,) = webhook.texts
    assert "version 2 answers kubectl now; before it was version 1" in text


@pytest.mark.parametrize("name", ["message", "sentence"])
def test_a_template_reads_the_message_by_its_present_and_its_former_name(
    configure: Callable, webhook: Webhook, name: str
) -> None:
    configure({**CHAT, "arguments": {"text": f"{{{{ notification.{name} }}}}"}})
    notifications.notify_failure(context(BaseOperator(task_id="merge"), AirflowException("the disk is full")))
    assert webhook.texts == ["the disk is full"]


def test_only_the_events_that_were_asked_for_are_told(configure: Callable, webhook: Webhook) -> None:
    configure({**CHAT, "events": ["promoted", "rolled_back"]})
    task = BaseOperator(task_id="canary")
    notifications.notify_failure(context(task, AirflowException("the disk is full")))
    notifications.notify_failure(context(task, DecisionError("it was slow", event="rolled_back")))
    assert [text.splitlines()[0] for text in webhook.texts] == ["*rolled back: customize.canary*"]


def test_a_sentence_is_no_template_and_holds_no_secret_and_no_second_line(
    configure: Callable, mailbox: Mailbox
) -> None:
    configure(MAIL)
    mask_secret("planted-secret")
    sentence = "{{ 6 * 7 }} planted-secret\r\nBcc: everyone@example.org\x1b[31m\u202e" + "x" * 5000
    notifications.notify_failure(context(BaseOperator(task_id="curate"), AirflowException(sentence)))
    (mail,) = mailbox.mails
    html = next(part.get_content() for part in mail.walk() if part.get_content_type() == "text/html")
    assert "{{ 6 * 7 }} *** Bcc: everyone@example.org [31m" in html
    assert mail["Bcc"] is None
    assert len(html) < 2500


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_receiver_that_is_away_costs_a_warning_and_seconds_and_the_others_get_theirs(
    kind: str,
    configure: Callable,
    connect: Callable,
    serve: Callable,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifications, "_SEND_SECONDS", 2.0)
    place = serve(Mailbox(silent=True)) if kind == "silent" else ("127.0.0.1", 9)
    connect("SMTP_DEFAULT", place, conn_type="smtp", extra={"disable_ssl": True, "disable_tls": True})
    configure(MAIL, CHAT)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger=notifications.__name__):
        notifications.notify_failure(context(BaseOperator(task_id="curate"), AirflowException("the disk is full")))
    assert time.monotonic() - began < 10
    assert len(webhook.texts) == 1
    (warning,) = [one.getMessage() for one in caplog.records if one.name == notifications.__name__]
    assert warning.startswith(f"{SMTP} ")
    assert "run failed: customize.curate" in warning


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {notifier: a.B, events: [lunch]}", r"0\.events\.0"),
        ("- {notifier: a.B, password: x}", r"0\.password: Extra inputs"),
        ("- {notifier: 'os; rm'}", r"0\.notifier"),
        ("[", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_list_is_told_and_keeps_no_dag_from_loading(
    text: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(notifications.VARIABLE, str(path))
    assert notifications.failure_callbacks() == {}
    with pytest.raises(Exception, match=says):
        notifications.configured()
    assert "no notifications are sent" in caplog.text


def test_every_known_class_takes_its_message() -> None:
    arguments = {
        "SnsNotifier": {"target_arn": "arn:aws:sns:eu-west-1:1:topic"},
        "ChimeNotifier": {"chime_conn_id": "chime"},
        "SmtpNotifier": {"to": "night@example.org"},
        "SlackNotifier": {},
        "SlackWebhookNotifier": {},
    }
    for path in notifications._MESSAGES:
        receiver = {"notifier": f"airflow.providers.{path}", "arguments": arguments[path.rpartition(".")[2]]}
        notifier = notifications._notifier(notifications.Notification.model_validate(receiver))
        assert set(notifications._MESSAGES[path]) <= set(notifier.template_fields)


def test_a_test_message_reaches_every_receiver(
    configure: Callable, webhook: Webhook, mailbox: Mailbox, capsys: pytest.CaptureFixture
) -> None:
    configure(MAIL, CHAT)
    assert notifications.main() == 0
    assert (len(webhook.texts), len(mailbox.mails)) == (1, 1)
    configure({"notifier": "no.such.Class"})
    assert notifications.main() == 1
