"""Moving the alias in a real MLflow on SQLite."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from include.errors import ConfigurationError, TryAgainError
from include.release.controller_client import ControllerClient
from include.release.rollouts import TargetStatus
from jobs.common.registry.client import connect, retryable
from jobs.promote.alias import follow_traffic, move_alias
from jobs.promote.live import live_version
from tests.proxies import DEAD_PROXIES

TOKEN = "planted-secret-token"


@pytest.fixture
def client(database: str) -> MlflowClient:
    client = MlflowClient(database, database)
    client.create_registered_model("kubectl")
    for _ in range(2):
        client.create_model_version("kubectl", source="file:///somewhere")
    return client


class Controller:
    """A canary controller's API on a free port; `live` gives what takes the traffic each time that it is asked."""

    def __init__(self, folder: Path) -> None:
        self.live: Callable[[], str | None] = lambda: None
        self.status = 200
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def do_GET(self) -> None:
                authorized = self.headers["Authorization"] == f"Bearer {TOKEN}"
                known = self.path == "/targets/kubectl"
                version = peer.live() if authorized and known and peer.status == 200 else None
                code = 401 if not authorized else peer.status if version or peer.status != 200 else 404
                body = target(version).model_dump_json() if version else json.dumps({"error": "its own words"})
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN + "\n")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked(self) -> str:
        return live_version(ControllerClient(self.url, self.token_file), "kubectl")


def target(version: str) -> TargetStatus:
    engine = {"uri": "file:///store/engine-1", "digest": "0" * 64}
    release = {"model": "kubectl", "version": version, "engine": engine}
    since = datetime(2026, 1, 2, tzinfo=UTC)
    return TargetStatus.model_validate(
        {"target": "kubectl", "champion": {"name": f"kubectl-v{version}-aaaaaaaa", "release": release, "since": since}}
    )


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    peer = Controller(tmp_path)
    yield peer
    peer.close()


def champion(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias("kubectl", "champion").version)


def test_the_alias_follows_and_the_former_is_on_record(
    run_job: Callable[..., Any], client: MlflowClient, database: str, controller: Controller
) -> None:
    move_alias(client, "kubectl", "1")
    controller.live = lambda: "2"
    place = {"controller_url": controller.url, "token_file": str(controller.token_file)}
    outcome = run_job("promote", {"model": "kubectl", **place}, env={"MLFLOW_TRACKING_URI": database})
    assert champion(client) == "2"
    record = json.loads((outcome.folder / "champion.json").read_text())
    assert record == {"model": "kubectl", "version": "2", "former": "1"}
    everything = outcome.stdout + outcome.stderr + outcome.manifest.model_dump_json()
    assert TOKEN not in everything


def test_no_proxy_stands_between_it_and_the_controller(
    run_job: Callable[..., Any], client: MlflowClient, database: str, controller: Controller
) -> None:
    controller.live = lambda: "2"
    place = {"controller_url": controller.url, "token_file": str(controller.token_file)}
    run_job("promote", {"model": "kubectl", **place}, env={"MLFLOW_TRACKING_URI": database, **DEAD_PROXIES})
    assert champion(client) == "2"


def test_what_goes_live_while_the_alias_moves_is_followed(client: MlflowClient, controller: Controller) -> None:
    """Another task moved the alias to 2 and was done, just before this one wrote what it had read earlier."""
    seen: list[str] = []

    def live() -> str:
        if not seen:
            seen.append("1")
            move_alias(client, "kubectl", "2")
        else:
            seen.append("2")
        return seen[-1]

    controller.live = live
    assert follow_traffic(client, "kubectl", controller.asked) == ("2", "2")
    assert champion(client) == "2"
    assert seen == ["1", "2", "2"]


def test_nothing_live_leaves_the_alias_as_it_is(client: MlflowClient, controller: Controller) -> None:
    move_alias(client, "kubectl", "1")
    with pytest.raises(ConfigurationError, match="nothing is live on kubectl any more"):
        follow_traffic(client, "kubectl", controller.asked)
    assert champion(client) == "1"


def test_a_controller_that_is_away_or_fails_is_worth_another_try(controller: Controller, tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match=r"does not answer at http://127\.0\.0\.1:9 .*`make up` starts it"):
        live_version(ControllerClient("http://127.0.0.1:9", controller.token_file), "kubectl")
    with pytest.raises(TryAgainError, match="cannot be read .*`make up` makes it"):
        live_version(ControllerClient(controller.url, tmp_path / "no-token"), "kubectl")
    controller.status = 503
    with pytest.raises(TryAgainError, match="failed at GET /targets/kubectl .its own words.: see its log"):
        controller.asked()
    controller.token_file.write_text("another")
    with pytest.raises(ConfigurationError, match="does not take the token in .*: another controller listens there"):
        controller.asked()


def test_a_database_that_another_holds_is_worth_another_try(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{database}?timeout=0")
    client = connect()
    held.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TryAgainError, match="database is locked"):
            connect()
        locked = pytest.raises(TryAgainError, match="could not look: .*database is locked")
        with locked, retryable("look"):
            client.get_registered_model("kubectl")
    finally:
        held.close()


@pytest.mark.parametrize("address", ["nonsense://x", "sqlite:///{folder}/text/mlflow.db"])
def test_what_can_never_be_a_registry_is_not_tried_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no database at all " * 200)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(folder=tmp_path))
    with pytest.raises(ConfigurationError, match="check the address"):
        connect()


def test_a_database_that_is_rubbish_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all " * 200)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TryAgainError, match="file is not a database; .*where it is damaged, put a copy of it back"):
        connect()


def test_neither_what_was_sent_nor_a_password_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-secret@127.0.0.1:9")
    said = (
        "API request to http://me:planted-secret@127.0.0.1:9/api failed [SQL: INSERT private] (Background on this error"
    )
    with pytest.raises(TryAgainError) as refusal, retryable("look"):
        raise MlflowException(said)
    assert "MLflow at http://127.0.0.1:9 could not look: API request to http://127.0.0.1:9/api failed;" in str(
        refusal.value
    )
    assert "secret" not in str(refusal.value)
    assert "private" not in str(refusal.value)


@pytest.mark.remedy("clear the task promote of the run that brought it")
def test_forward_back_and_twice(client: MlflowClient) -> None:
    assert [move_alias(client, "kubectl", version) for version in ("1", "2", "2", "1")] == [None, "1", "2", "2"]
    assert champion(client) == "1"


def test_a_version_that_was_deleted_is_refused_and_the_alias_stays(client: MlflowClient) -> None:
    move_alias(client, "kubectl", "2")
    client.delete_model_version("kubectl", "1")
    for version in ("1", "9"):
        with pytest.raises(ConfigurationError, match=f"version {version} of kubectl takes the traffic, but"):
            move_alias(client, "kubectl", version)
    assert champion(client) == "2"
