"""The client of the canary controller's API, against one that speaks it over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.laptop import live
from include.laptop.home import python_of
from include.platforms import load_platform
from include.release import controller_client
from include.release.controller_client import ControllerClient
from include.release.rollouts import ControllerState, RolloutRequest, RolloutStatus, TargetStatus
from tests.proxies import DEAD_PROXIES

TOKEN = "planted-secret-token"
REQUEST = RolloutRequest(id="back-1", kind="rollback", target="kubectl")
STATUS = RolloutStatus(id="back-1", kind="rollback", target="kubectl", state="pending")
TARGET = TargetStatus(target="kubectl")


class Peer:
    """Answers as the controller does whose only rollout is `back-1`; `refusing` is a status that all get instead."""

    def __init__(self, folder: Path) -> None:
        self.refusing: int | None = None
        self.calls: list[str] = []
        self.bodies: list[Any] = []
        answers = {
            "POST /rollouts": STATUS,
            "GET /rollouts/back-1": STATUS,
            "POST /rollouts/back-1/abort": STATUS,
            "POST /rollouts/back-1/resume": STATUS,
            "GET /targets/kubectl": TARGET,
            "GET /state": ControllerState(targets=(TARGET,)),
        }
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def _do(self) -> None:
                call = f"{self.command} {self.path}"
                peer.calls.append(call)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                peer.bodies.append(json.loads(body) if body else None)
                status, answer = 404, json.dumps({"error": f"nothing at {self.path}"})
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    status = 401
                elif peer.refusing is not None:
                    status, answer = peer.refusing, json.dumps({"error": "its own words"})
                elif call in answers:
                    status, answer = 200, answers[call].model_dump_json()
                elif call == "DELETE /targets/kubectl":
                    status, answer = 200, json.dumps({"target": "kubectl", "retired": True})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer.encode())

            do_GET = do_POST = do_DELETE = _do  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._token_file = folder / "token"
        self._token_file.write_text(TOKEN + "\n")
        self.client = ControllerClient(f"http://127.0.0.1:{self.port}", self._token_file)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment; none of them answers."""
    for name, address in DEAD_PROXIES.items():
        monkeypatch.setenv(name, address)


def test_every_call_is_answered_and_goes_through_no_proxy(peer: Peer, proxies: None) -> None:
    client = peer.client
    assert client.start(REQUEST) == client.status("back-1") == client.resume("back-1") == STATUS
    assert client.abort("back-1", "a reason") is None
    assert peer.bodies[0] == REQUEST.model_dump(mode="json")
    assert peer.bodies[-1] == {"reason": "a reason"}
    assert client.target("kubectl") == TARGET
    assert client.state().targets == (TARGET,)
    client.retire("kubectl")
    assert peer.calls[-1] == "DELETE /targets/kubectl"


def test_what_the_controller_does_not_know_is_none_or_refused(peer: Peer) -> None:
    client = peer.client
    assert client.status("back-9") is client.target("other") is client.abort("back-9", "a reason") is None
    with pytest.raises(ConfigurationError, match="refused POST /rollouts/back-9/resume: nothing at"):
        client.resume("back-9")


def test_a_name_stays_one_part_of_the_path(peer: Peer) -> None:
    assert peer.client.status("../targets/kubectl?x#y") is None
    assert peer.calls == ["GET /rollouts/..%2Ftargets%2Fkubectl%3Fx%23y"]


def test_an_abort_that_comes_too_late_says_so_and_a_retirement_that_lasts_is_tried_again(peer: Peer) -> None:
    peer.refusing = 409
    assert peer.client.abort("back-1", "a reason") == "its own words"
    with pytest.raises(TryAgainError, match="its own words"):
        peer.client.retire("kubectl")


@pytest.mark.parametrize("status", [302, 401, 422])
def test_a_refusal_is_final(peer: Peer, status: int) -> None:
    peer.refusing = status
    with pytest.raises(ConfigurationError, match=r"does not take the token|refused GET /state: its own words"):
        peer.client.state()


def test_a_failure_is_tried_again(peer: Peer) -> None:
    peer.refusing = 503
    with pytest.raises(TryAgainError, match="failed at GET /state .its own words.: see its log"):
        peer.client.state()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9"])
def test_on_a_laptop_make_up_is_the_remedy(tmp_path: Path, url: str) -> None:
    with pytest.raises(TryAgainError, match="cannot be read .No such file or directory.: `make up` makes it"):
        ControllerClient(url, tmp_path / "token").state()
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(TryAgainError, match=r"does not answer at .*refused\): `make up` starts it"):
        ControllerClient(url, tmp_path / "token").state()


@pytest.mark.parametrize(
    ("variable", "value"), [("ANEMONE_PLATFORM", "compose"), ("KUBERNETES_SERVICE_HOST", "10.96.0.1"), (None, None)]
)
def test_inside_a_container_the_remedy_is_another_also_for_a_controller_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str
) -> None:
    """As for who types `docker compose exec canary-controller python -m jobs.serving.canary status …`."""
    if variable is not None:
        monkeypatch.setenv(variable, value)
    else:
        monkeypatch.setattr(controller_client, "PROJECT", tmp_path)
    with pytest.raises(TryAgainError, match="see that the secret or volume with it is mounted"):
        ControllerClient("http://127.0.0.1:9", tmp_path / "token").state()
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(TryAgainError, match="see that its pod or container runs"):
        ControllerClient("http://127.0.0.1:9", tmp_path / "token").state()


def test_in_a_cluster_the_remedy_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TryAgainError, match="see that the secret or volume with it is mounted"):
        ControllerClient("http://canary-controller.invalid:8002", tmp_path / "token").state()
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(TryAgainError, match="see that its pod or container runs"):
        ControllerClient("http://canary-controller.invalid:8002", tmp_path / "token").state()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(TryAgainError, match="see that its pod or container runs"):
        ControllerClient("http://127.0.0.1:9", tmp_path / "token").state()


@pytest.mark.usefixtures("proxies")
def test_a_demo_takes_out_of_service_what_is_live(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path))
    load_platform.cache_clear()
    laptop = load_platform("laptop")
    place = {"controller_url": f"http://127.0.0.1:{peer.port}", "token_file": str(tmp_path / "token")}
    serving = laptop.serving.model_copy(update=place)
    monkeypatch.setattr(live, "load_platform", lambda _: laptop.model_copy(update={"serving": serving}))
    python = python_of("jobs")
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nshift 2\ntest "$*" = kubectl || { echo "error: no such model" >&2; exit 64; }\n')
    python.chmod(0o755)
    load_platform.cache_clear()
    assert live.retire("kubectl")
    assert peer.calls == ["GET /targets/kubectl", "DELETE /targets/kubectl"]
    python.write_text("#!/bin/sh\necho 'error: no registry' >&2; exit 75\n")
    with pytest.raises(AnemoneError, match="still named in MLflow: error: no registry"):
        live.retire("kubectl")
