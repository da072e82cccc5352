"""Who is told what at night: real DAGs through Airflow's own task runner, and a real receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.home import PROJECT
from tests.faults.scenario import scenario
from tests.operators.test_notifications import Mailbox, Webhook, serve  # noqa: F401

_DAG = """
import sys
from datetime import timedelta
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException
from operators import GateSensor, default_args

@dag(schedule=None, default_args={{**default_args(), "retries": 1, "retry_delay": timedelta(0)}})
def customize():
    @task
    def work(what: str):
        if what == "the disk is full":
            raise AirflowException(what)
    gate = GateSensor(task_id="data_quality_gate", gate="data_quality", artifact="{artifact}")
    gate >> work.override(task_id="curate")("{curate}") >> work.override(task_id="train")("") >> work("")

found = customize()
if __name__ == "__main__":
    run = found.test()
    print("STATES", {{ti.task_id: str(ti.state) for ti in run.get_task_instances()}})
"""
_KILLED = """
import sys, uuid
from datetime import UTC, datetime
import structlog
from airflow.api_fastapi.execution_api.datamodels.taskinstance import DagRun, TaskInstance, TIRunContext
from airflow.callbacks.callback_requests import TaskCallbackRequest
from airflow.dag_processing.dagbag import DagBag
from airflow.dag_processing.processor import _execute_task_callbacks
from airflow.utils.state import TaskInstanceState

ti = TaskInstance(id=uuid.uuid4(), dag_id="customize", task_id="train", run_id="manual__1", try_number=2, map_index=-1,
                  dag_version_id=uuid.uuid4(), hostname="here", pool_slots=1, queue="default", priority_weight=1)
now = datetime.now(UTC)
run = DagRun(dag_id="customize", run_id="manual__1", logical_date=None, run_after=now, start_date=now,
             run_type="manual", state="running", consumed_asset_events=[], data_interval_start=None,
             data_interval_end=None, end_date=None, partition_key=None)
request = TaskCallbackRequest(filepath="x.py", bundle_name="b", bundle_version=None, ti=ti, msg="killed externally",
                              task_callback_type=TaskInstanceState.FAILED,
                              context_from_server=TIRunContext(dag_run=run, max_tries=1))
_execute_task_callbacks(DagBag(sys.argv[1]), request, structlog.get_logger())
"""


class Night:
    """An Airflow database of its own, and whoever is to be told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")},
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "plugins"),
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
            "AIRFLOW__API__BASE_URL": "http://127.0.0.1:8080",
            "PYTHONPATH": str(PROJECT),
        }

    def migrate(self) -> None:
        command = [str(Path(sys.executable).parent / "airflow"), "db", "migrate"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def python(self, *arguments: str, **environment: str) -> tuple[str, float]:
        """Output, and seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr, time.monotonic() - began

    def dag(self, artifact: str, *, curate: str = "") -> str:
        path = self.folder / "dags" / "customize.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(_DAG).format(artifact=artifact, curate=curate))
        return str(path)

    def tells(self, *receivers: dict[str, Any]) -> dict[str, str]:
        path = self.folder / "notifications.yaml"
        path.write_text(yaml.safe_dump(list(receivers)))
        return {"ANEMONE_NOTIFICATIONS": str(path)}


SLACK = {"notifier": "airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier"}
SMTP = {
    "notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
    "arguments": {"from_email": "anemone@example.org", "to": "night@example.org"},
}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    night = Night(tmp_path_factory.mktemp("night"))
    night.migrate()
    return night


@pytest.fixture
def chat(serve: Callable[[Any], Any]) -> Iterator[Webhook]:  # noqa: F811
    return serve(Webhook())


def connection(chat: Webhook) -> dict[str, str]:
    host, port = chat.server_address
    return {"AIRFLOW_CONN_SLACK_DEFAULT": json.dumps({"host": f"http://{host}:{port}", "password": "T/B/x"})}


def judged(store: Any, commit: Callable[..., Any], *, good: bool) -> str:
    found = {"name": "rows", "success": good, "observed": 1, "limit": 5, "message": "1 row, at least 5 are needed"}
    commit("check-1", {"result.json": json.dumps({"success": good, "rows": 1, "expectations": [found]})})
    return store.uri("check-1")


@scenario(
    given="a run whose data-quality gate says no, and three tasks after it",
    when="the run ends",
    then="one message, with the gate's sentence and the link to its task",
)
def test_a_gate_is_told_once(
    night: Night, chat: Webhook, store: Any, commit: Callable[..., Any], reads: Callable[[str], None]
) -> None:
    dag = night.dag(judged(store, commit, good=False))
    output, _ = night.python(dag, **night.tells(SLACK), **connection(chat))
    assert "'train': 'upstream_failed'" in output
    (text,) = chat.texts
    assert text.startswith("*gate failed: customize.data_quality_gate*")
    assert "1 row, at least 5 are needed" in text
    assert "/tasks/data_quality_gate" in text
    reads(text.splitlines()[1].replace(store.root, "<store>"))


@scenario(
    given="a task that fails at both of its tries",
    when="the run ends",
    then="one message, after the last of them",
)
def test_a_failed_task_is_told_after_its_last_try(
    night: Night, chat: Webhook, store: Any, commit: Callable[..., Any], reads: Callable[[str], None]
) -> None:
    dag = night.dag(judged(store, commit, good=True), curate="the disk is full")
    output, _ = night.python(dag, **night.tells(SLACK), **connection(chat))
    assert "'curate': 'failed'" in output
    assert [text.splitlines()[:2] for text in chat.texts] == [["*run failed: customize.curate*", "the disk is full"]]
    reads(chat.texts[0].splitlines()[1])


@scenario(
    given="a task whose process was killed",
    when="Airflow's dag-processor runs its callback",
    then="one message, which says that it was killed",
)
def test_a_killed_task_is_told(night: Night, chat: Webhook, reads: Callable[[str], None]) -> None:
    dag = night.dag("file:///nowhere/check-1")
    night.python("-c", _KILLED, dag, **night.tells(SLACK), **connection(chat))
    (text,) = chat.texts
    assert text.splitlines()[0] == "*run failed: customize.train*"
    assert "/dags/customize/runs/manual__1/tasks/train" in text
    reads(text.splitlines()[1])


@scenario(
    given="a mail server that accepts and never says a word, and a chat",
    when="a gate fails",
    then="the chat is told, and the run ends within seconds as it would have",
)
def test_a_dead_receiver_hangs_nothing(
    night: Night,
    chat: Webhook,
    serve: Callable[[Any], Any],  # noqa: F811
    store: Any,
    commit: Callable[..., Any],
    reads: Callable[[str], None],
) -> None:
    host, port = serve(Mailbox(silent=True)).server_address
    mail = {"host": host, "port": port, "conn_type": "smtp", "extra": {"disable_ssl": True, "disable_tls": True}}
    dag = night.dag(judged(store, commit, good=False))
    both = night.tells(SMTP, SLACK)
    output, _ = night.python(dag, AIRFLOW_CONN_SMTP_DEFAULT=json.dumps(mail), **both, **connection(chat))
    assert "'data_quality_gate': 'failed'" in output
    assert len(chat.texts) == 1
    assert output.count("did not take the message") == 1
    reads(next(line for line in output.splitlines() if "did not take the message" in line).partition("] ")[2])


@scenario(given="no notifications configured", when="a gate fails", then="nobody is told, and nothing is tried")
def test_without_configuration_nobody_is_told(
    night: Night, chat: Webhook, store: Any, commit: Callable[..., Any]
) -> None:
    dag = night.dag(judged(store, commit, good=False))
    output, _ = night.python(dag, **connection(chat))
    assert "'data_quality_gate': 'failed'" in output
    assert chat.texts == []
    assert "taken the message" not in output
