"""Who is asked what is needed, and what becomes of an answer that is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.errors import ConfigurationError, DataError, TryAgainError
from include.release.rollouts import ControllerState, LiveRelease, RolloutRequest, TargetStatus
from include.retention import Policy
from include.specs.retention import Config
from jobs.retention.needs import controller_needs, controller_state, registry_needs
from jobs.serving.canary.state.records import Records
from tests.jobs.retention.conftest import MODEL, World

STORE = Store("s3://bucket/store")


def release(number: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "version": str(number),
        "engine": {"uri": STORE.uri(f"engine-{number}"), "digest": "0" * 64},
    }


def live(number: int) -> LiveRelease:
    document = {"name": f"v{number}", "release": release(number), "since": datetime.now(UTC)}
    return LiveRelease.model_validate(document)


def names(needs: Iterator[Any]) -> set[str]:
    return {name for need in needs for name in need.names}


TARGET = TargetStatus(target=MODEL, champion=live(9), previous=tuple(live(number) for number in (8, 7, 6, 5)))


def test_live_warm_and_the_way_back_are_needed() -> None:
    state = ControllerState(targets=(TARGET,))
    assert names(controller_needs(state, STORE, Policy(keep_previous=2))) == {"engine-9", "engine-8", "engine-7"}


def test_while_a_rollout_goes_on_all_that_it_may_go_to_is_needed() -> None:
    back = RolloutRequest(id="r", kind="rollback", target=MODEL)
    state = ControllerState(targets=(TARGET,), unfinished=(back,))
    needed = names(controller_needs(state, STORE, Policy(keep_previous=1)))
    assert needed == {f"engine-{number}" for number in (5, 6, 7, 8, 9)}
    first = RolloutRequest.model_validate({"id": "f", "kind": "release", "target": MODEL, "release": release(10)})
    assert names(controller_needs(ControllerState(unfinished=(first,)), STORE, Policy())) == {"engine-10"}


def test_what_lies_in_another_store_is_not_ours() -> None:
    assert names(controller_needs(ControllerState(targets=(TARGET,)), Store("s3://bucket/other"), Policy())) == set()


class Peer:
    """Answers GET /state on a free port."""

    def __init__(self) -> None:
        self.code, self.body = 200, ControllerState(targets=(TARGET,)).model_dump_json()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def do_GET(self) -> None:
                authorized = self.headers["Authorization"] == "Bearer planted-secret-token"
                self.send_response(peer.code if authorized and self.path == "/state" else 401)
                self.end_headers()
                self.wfile.write(peer.body.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.server.shutdown()
    peer.thread.join()
    peer.server.server_close()


@pytest.fixture
def config(tmp_path: Path, peer: Peer) -> Config:
    (tmp_path / "token").write_text("planted-secret-token\n")
    return Config(
        controller_url=f"http://127.0.0.1:{peer.server.server_address[1]}",
        token_file=str(tmp_path / "token"),
        records=str(tmp_path / "canary"),
    )


def test_the_controller_is_asked_first(config: Config) -> None:
    assert controller_state(config).targets == (TARGET,)


def test_what_is_no_controller_is_refused(config: Config, peer: Peer) -> None:
    peer.body = "{}}"
    with pytest.raises(ConfigurationError, match="is not this Anemone's canary controller"):
        controller_state(config)
    peer.code = 404
    with pytest.raises(ConfigurationError, match="refused to say what it needs .404.*nothing was deleted"):
        controller_state(config)


def test_a_controller_that_fails_is_tried_again_unless_none_runs(config: Config, peer: Peer) -> None:
    peer.code = 503
    assert controller_state(config) == ControllerState(), "no controller ever ran here"
    with pytest.raises(TryAgainError, match="failed .503."):
        controller_state(config.model_copy(update={"records": None}))
    records = Records(Path(config.records))
    records.lock()
    with pytest.raises(TryAgainError, match="although it runs"):
        controller_state(config)
    records.close()
    (Path(config.records) / "targets" / "kubectl.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        controller_state(config)


def test_aliases_and_the_newest_versions_are_needed_with_all_that_they_name(world: World) -> None:
    for number in range(1, 5):
        world.make(f"merge-{number}")
        world.make(f"evaluate-{number}")
        world.register(f"merge-{number}", f"evaluate-{number}")
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    needed = names(registry_needs(world.client, world.store, Policy(keep_versions=2), {MODEL}))
    assert needed == {f"{job}-{number}" for job in ("merge", "evaluate") for number in (1, 3, 4)}


def test_a_registry_that_does_not_know_what_was_registered_is_another(world: World) -> None:
    with pytest.raises(ConfigurationError, match="MLflow knows no model other, which was registered from"):
        names(registry_needs(world.client, world.store, Policy(), {MODEL, "other"}))
