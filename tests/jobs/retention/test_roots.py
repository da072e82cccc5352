"""The roots of a store, and answers of the controller that are none."""

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
from jobs.common.registry.tags import RESOLVED_RECIPE_TAG, RecipeAddress
from jobs.retention.roots import controller_roots, controller_state, registry_roots
from jobs.serving.canary.state.records import Records
from tests.jobs.retention.conftest import MODEL, World
from tests.proxies import DEAD_PROXIES

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


def names(roots: Iterator[Any]) -> set[str]:
    return {name for root_set in roots for name in root_set.names}


TARGET = TargetStatus(target=MODEL, champion=live(9), previous=tuple(live(number) for number in (8, 7, 6, 5)))


def test_the_live_release_and_those_before_it_are_roots() -> None:
    state = ControllerState(targets=(TARGET,))
    assert names(controller_roots(state, STORE, Policy(keep_previous=2))) == {"engine-9", "engine-8", "engine-7"}


def test_while_a_rollout_is_unfinished_every_release_that_it_may_go_back_to_is_a_root() -> None:
    back = RolloutRequest(id="r", kind="rollback", target=MODEL)
    state = ControllerState(targets=(TARGET,), unfinished=(back,))
    needed = names(controller_roots(state, STORE, Policy(keep_previous=1)))
    assert needed == {f"engine-{number}" for number in (5, 6, 7, 8, 9)}
    first = RolloutRequest.model_validate({"id": "f", "kind": "release", "target": MODEL, "release": release(10)})
    assert names(controller_roots(ControllerState(unfinished=(first,)), STORE, Policy())) == {"engine-10"}


def test_what_is_in_another_store_is_no_root() -> None:
    assert names(controller_roots(ControllerState(targets=(TARGET,)), Store("s3://bucket/other"), Policy())) == set()


class Controller:
    """Answers GET /state on a free port."""

    def __init__(self) -> None:
        self.code, self.body = 200, ControllerState(targets=(TARGET,)).model_dump_json()
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def do_GET(self) -> None:
                authorized = self.headers["Authorization"] == "Bearer planted-secret-token"
                self.send_response(controller.code if authorized and self.path == "/state" else 401)
                self.end_headers()
                self.wfile.write(controller.body.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()


@pytest.fixture
def controller() -> Iterator[Controller]:
    controller = Controller()
    yield controller
    controller.server.shutdown()
    controller.thread.join()
    controller.server.server_close()


@pytest.fixture
def config(tmp_path: Path, controller: Controller) -> Config:
    (tmp_path / "token").write_text("planted-secret-token\n")
    return Config(
        controller_url=f"http://127.0.0.1:{controller.server.server_address[1]}",
        token_file=str(tmp_path / "token"),
        records=str(tmp_path / "canary"),
    )


def test_the_controller_is_asked_first(config: Config) -> None:
    assert controller_state(config).targets == (TARGET,)


def test_the_controller_is_asked_through_no_proxy(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, address in DEAD_PROXIES.items():
        monkeypatch.setenv(name, address)
    assert controller_state(config.model_copy(update={"records": None})).targets == (TARGET,)


def test_what_is_no_controller_is_refused(config: Config, controller: Controller) -> None:
    controller.body = "{}}"
    with pytest.raises(ConfigurationError, match="is not this Anemone's canary controller.*nothing was deleted"):
        controller_state(config)
    controller.code = 404
    with pytest.raises(ConfigurationError, match="refused GET /state: status 404.*nothing was deleted"):
        controller_state(config)


def test_a_controller_that_fails_is_tried_again_unless_none_runs(config: Config, controller: Controller) -> None:
    controller.code = 503
    assert controller_state(config) == ControllerState(), "no controller ever ran here"
    with pytest.raises(TryAgainError, match="failed at GET /state .status 503.*nothing was deleted"):
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
    needed = names(registry_roots(world.client, world.store, Policy(keep_versions=2), {MODEL}))
    assert needed == {f"{job}-{number}" for job in ("merge", "evaluate") for number in (1, 3, 4)}


def test_the_recipe_of_a_version_is_needed_as_long_as_the_version_is(world: World) -> None:
    for number in range(1, 4):
        world.make(f"merge-{number}")
        version = world.register(f"merge-{number}")
        address = RecipeAddress(uri=world.store.uri(f"register-{number}"), digest="0")
        world.client.set_model_version_tag(MODEL, version, RESOLVED_RECIPE_TAG, address.model_dump_json())
    world.client.set_model_version_tag(MODEL, "2", RESOLVED_RECIPE_TAG, "typed by hand")
    needed = names(registry_roots(world.client, world.store, Policy(keep_versions=2), {MODEL}))
    assert needed == {"merge-3", "register-3", "merge-2"}


def test_a_registry_that_does_not_know_what_was_registered_is_another(world: World) -> None:
    with pytest.raises(ConfigurationError, match="MLflow knows no model other, which was registered from"):
        names(registry_roots(world.client, world.store, Policy(), {MODEL, "other"}))
