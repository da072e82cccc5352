"""A canary controller on a free port: its real API over real HTTP, and a story that the test tells."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner

from include.platforms import Platform, load_platform
from include.release.rollouts import LiveRelease, Note, RolloutRequest, RolloutStatus, TargetStatus
from operators.release import planning, rollout_operator, trigger
from tests.operators.airflow_runs import Runs

TOKEN = "planted-secret-token"
ENGINE = {"uri": "file:///store/engine-1", "digest": "0" * 64}


def live(version: str, name: str | None = None) -> LiveRelease:
    return LiveRelease.model_validate(
        {
            "name": name or f"kubectl-v{version}-aaaaaaaa",
            "release": {"model": "kubectl", "version": version, "engine": ENGINE},
            "since": datetime(2026, 1, 2, tzinfo=UTC),
        }
    )


class ControllerPeer:
    """Keeps what was requested; `story` changes a rollout at each request for its status."""

    def __init__(self) -> None:
        self.requests: dict[str, RolloutRequest] = {}
        self.rollouts: dict[str, RolloutStatus] = {}
        self.targets: dict[str, TargetStatus] = {}
        self.aborted: list[tuple[str, str]] = []
        self.story: Callable[[RolloutStatus], dict[str, Any]] = lambda status: {}
        self.busy_with: str | None = None
        self.failing: int | None = None
        self.calls: list[str] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                peer.calls.append(f"{self.command} {self.path}")
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    status, answer = 401, {"error": "no such token"}
                elif peer.failing is not None:
                    status, answer = peer.failing, {"error": "the disk is full"}
                else:
                    status, answer = peer.answer(self.command, self.path.strip("/").split("/"), body)
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = _do  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def tell(self, rollout: str, **change: Any) -> None:
        """Let a rollout go on; `notes` are (state, message), added to those it has."""
        status = self.rollouts[rollout]
        added = [
            Note(time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), state=state, message=message)
            for state, message in change.pop("notes", ())
        ]
        draft = {**status.model_dump(), **change, "notes": [*status.notes, *added]}
        self.rollouts[rollout] = RolloutStatus.model_validate(draft)

    def answer(self, method: str, path: list[str], body: Any) -> tuple[int, Any]:
        match method, path:
            case "POST", ["rollouts"]:
                return self._start(RolloutRequest.model_validate(body))
            case "GET", ["rollouts", rollout] if rollout in self.rollouts:
                self.tell(rollout, **self.story(self.rollouts[rollout]))
                return 200, self.rollouts[rollout].model_dump(mode="json")
            case "POST", ["rollouts", rollout, "abort"] if rollout in self.rollouts:
                if self.rollouts[rollout].outcome == "promoted":
                    return 409, {"error": f"rollout {rollout} is promoted already: ask for a rollback"}
                self.aborted.append((rollout, body["reason"]))
                return 200, self.rollouts[rollout].model_dump(mode="json")
            case "GET", ["targets", target] if target in self.targets:
                return 200, self.targets[target].model_dump(mode="json")
        return 404, {"error": f"nothing at {'/'.join(path)}"}

    def _start(self, request: RolloutRequest) -> tuple[int, Any]:
        if request.id in self.requests:
            if self.requests[request.id] != request:
                return 409, {"error": f"the id {request.id} was used for another request", "rollout": request.id}
            return 200, self.rollouts[request.id].model_dump(mode="json")
        if self.busy_with is not None:
            return 409, {"error": "another rollout goes on", "rollout": self.busy_with}
        self.requests[request.id] = request
        self.rollouts[request.id] = RolloutStatus(
            id=request.id, kind=request.kind, target=request.target, state="pending"
        )
        self.tell(request.id, notes=[("pending", "asked for")])
        return 201, self.rollouts[request.id].model_dump(mode="json")


@pytest.fixture
def airflow_runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What starts runs asks this supervisor."""
    runs = Runs()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", runs, raising=False)
    return runs


@pytest.fixture
def controller() -> Iterator[ControllerPeer]:
    peer = ControllerPeer()
    yield peer
    peer.close()


@pytest.fixture
def platform(controller: ControllerPeer, tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The laptop, with this controller and a quick poll."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    laptop = load_platform("laptop")
    serving = laptop.serving.model_copy(
        update={
            "controller_url": controller.url,
            "token_file": str(token),
            "poll_seconds": 0.02,
            "unreachable_seconds": 60.0,
        }
    )
    platform = laptop.model_copy(update={"serving": serving, "store": store.root})
    for module in (planning, rollout_operator, trigger):
        monkeypatch.setattr(module, "current_platform", lambda: platform)
    return platform
