"""A serving side of its own (Triton, router, controller, keeper) with two releases to play with, and no Airflow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from include.home import PROJECT, serving_ports
from include.home import home as project_home
from include.laptop.home import python_of
from include.laptop.serving import controller_url, router_url, token
from include.laptop.up import start_keeper, start_serving, wait_for_serving
from tests.homes import own_home
from tests.toy_releases import POLICY, make_engines
from tests.waiting import wait_for

TARGET = "toy"


class Serving:
    """The serving side as its users see it: the controller's API, the router's admin API, and the public one."""

    def __init__(self, releases: list[dict[str, Any]]) -> None:
        self.releases = releases
        headers = {"Authorization": f"Bearer {token()}"}
        self.controller = httpx.Client(base_url=controller_url(), headers=headers, timeout=5, trust_env=False)
        admin = f"http://127.0.0.1:{serving_ports()['router_admin']}"
        self.admin = httpx.Client(base_url=admin, headers=headers, timeout=5, trust_env=False)
        self.public = httpx.Client(base_url=router_url(), timeout=10, trust_env=False)

    def start(self, rollout: str, version: int, **more: Any) -> None:
        """Ask for the release of version 1 or 2, for as long as it takes the controller to hear it."""
        champion = (self.target().get("champion") or {"release": {"version": None}})["release"]["version"]
        release = {"model": TARGET, "version": str(version), "engine": self.releases[version - 1]}
        request = {"kind": "release", "release": release, "expected_champion": champion}
        self.ask({"id": rollout, "target": TARGET, "policy": POLICY, **request, **more})

    def ask(self, request: dict[str, Any]) -> None:
        def heard() -> bool:
            try:
                answer = self.controller.post("/rollouts", json=request)
            except httpx.HTTPError:
                return False
            assert answer.status_code in (200, 201), answer.text
            return True

        wait_for(heard, 60, "the controller to take the request")

    def status(self, rollout: str) -> dict[str, Any] | None:
        """None while the controller is away."""
        try:
            answer = self.controller.get(f"/rollouts/{rollout}")
        except httpx.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def ended(self, rollout: str, seconds: float = 180) -> dict[str, Any]:
        def end() -> dict[str, Any] | None:
            status = self.status(rollout)
            return status if status and status["state"] == "finished" else None

        return wait_for(end, seconds, f"the end of {rollout}: {self.status(rollout)}")

    def target(self) -> dict[str, Any]:
        answer = wait_for(lambda: self._answer(self.controller, f"/targets/{TARGET}"), 60, "the controller")
        return answer.json() if answer.status_code == 200 else {}

    def route(self) -> dict[str, Any]:
        answer = wait_for(lambda: self._answer(self.admin, "/state"), 60, "the router")
        return answer.json()["targets"][TARGET]

    def answers(self) -> bool:
        """Whether a client gets an answer now."""
        body = {"model": TARGET, "messages": [{"role": "user", "content": "list the pods"}], "max_tokens": 8}
        try:
            answer = self.public.post("/v1/chat/completions", json=body)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and "choices" in answer.json()

    def _answer(self, client: httpx.Client, path: str) -> httpx.Response | None:
        try:
            return client.get(path)
        except httpx.HTTPError:
            return None


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with own_home(tmp_path_factory.mktemp("home")) as home:
        releases = make_engines(f"file://{home}/store")
        start_serving()
        wait_for_serving()
        start_keeper()
        yield Serving(releases)


@pytest.fixture(scope="module")
def traffic(serving: Serving) -> Iterator[Path]:
    """Sixty requests a second from clients of every kind; the file holds what they saw."""
    out = project_home() / "traffic.json"
    command = [str(python_of("serving")), "-m", "jobs.serving.traffic", "--url", router_url(), "--model", TARGET]
    command += ["--rate", "60", "--out", str(out)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    yield out
    process.terminate()
    process.wait()
