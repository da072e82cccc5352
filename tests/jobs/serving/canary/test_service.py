"""The controller as a process: its API, its command line, and that there is one a folder."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.jobs.serving.canary.services import TARGET, Services, make_engines
from tests.proxies import DEAD_PROXIES


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Services that tests leave as they found them: nothing is live."""
    folder = tmp_path_factory.mktemp("idle")
    services = Services(folder, make_engines(folder / "made"))
    (folder / "token").write_text("secret")
    services.start()
    try:
        asyncio.run(services.live())
        yield services
    finally:
        services.stop()


def test_the_api_asks_for_its_token_and_says_what_is_wrong(idle: Services) -> None:
    async def work() -> None:
        url = f"http://127.0.0.1:{idle.ports[2]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/targets/{TARGET}") as response:
                assert response.status == 401
            async with session.get(f"{url}/health") as response:
                assert response.status == 200
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 200 and "process_start_time_seconds" in await response.text()
        assert (await idle.call("GET", "/targets/nothing"))[0] == 404
        assert (await idle.call("GET", "/rollouts/nothing"))[0] == 404
        code, document = await idle.call("POST", "/rollouts", {"id": "x", "kind": "release", "target": TARGET})
        assert (code, "a release names what to release" in document["error"]) == (422, True)
        request = idle.request(1).model_dump(mode="json")
        assert (await idle.call("POST", "/rollouts", request))[0] == 201
        assert (await idle.call("POST", "/rollouts", request))[0] == 200
        code, document = await idle.call("POST", "/rollouts", {**request, "drill": "slow"})
        assert (code, document["rollout"]) == (409, request["id"])
        assert (await idle.call("POST", f"/rollouts/{request['id']}/resume"))[0] == 409
        await idle.ended(request["id"])
        code, document = await idle.call("DELETE", f"/targets/{TARGET}")
        assert (code, document) == (200, {"target": TARGET, "retired": True})
        assert (await idle.call("GET", f"/targets/{TARGET}"))[0] == 404

    asyncio.run(work())


def test_a_second_controller_is_kept_off_the_folder(idle: Services) -> None:
    second = [sys.executable, "-m", "jobs.serving.canary", "serve", "--folder", str(idle.folder), "--port", "1"]
    second += ["--router", "http://127.0.0.1:1", "--triton", "127.0.0.1:1", "--store", "file:///nowhere"]
    done = subprocess.run(second, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "another controller works on" in done.stderr


def test_the_command_line_tells_a_missing_token_from_a_controller_that_does_not_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.serving.canary", "status", "release-1", "--folder", str(tmp_path)]

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, "--port", "1"], capture_output=True, text=True, timeout=60)

    missing = ask()
    assert (missing.returncode, f"cannot be read from {tmp_path}/token" in missing.stderr) == (64, True)
    (tmp_path / "token").write_text("secret")
    down = ask()
    assert (down.returncode, "the canary controller does not answer" in down.stderr) == (75, True)


def test_status_abort_and_resume_from_the_command_line_through_no_proxy(idle: Services) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        place = ["--folder", str(idle.folder), "--port", str(idle.ports[2])]
        command = [sys.executable, "-m", "jobs.serving.canary", *arguments, *place]
        environment = {**os.environ, **DEAD_PROXIES}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    asyncio.run(idle.roll_out(idle.request(1)))
    assert json.loads(ask("status", f"target:{TARGET}").stdout)["champion"]["release"]["version"] == "1"
    assert json.loads(ask("status", "release-1-none").stdout)["outcome"] == "promoted"
    refused = ask("abort", "release-1-none")
    nothing_held = ask("resume", "release-1-none")
    unknown = [ask("status", "release-9"), ask("status", "target:unknown"), ask("abort", "release-9")]
    asyncio.run(idle.call("DELETE", f"/targets/{TARGET}"))
    assert (refused.returncode, refused.stderr.startswith("error: rollout release-1-none is promoted")) == (64, True)
    assert (nothing_held.returncode, "is not held" in nothing_held.stderr) == (64, True)
    assert [done.returncode for done in unknown] == [64, 64, 64]
    assert "error: there is no target unknown" in unknown[1].stderr
    assert all("error: there is no rollout release-9" in done.stderr for done in (unknown[0], unknown[2]))
