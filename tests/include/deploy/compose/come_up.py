"""docker-compose.yaml for real: up, a data set into the inbox, `customize`, its release, an answer, and down again.

    python -m tests.include.deploy.compose.come_up [--keep] [--base IMAGE] [--build-base IMAGE]

Needs a Docker daemon, `docker compose` or `docker-compose`, and Anemone's images (`make images`). A third-party image
that is neither here nor to be had from a registry is made from Debian's packages under the same name
(stand_ins.Dockerfile); one for which there is no stand-in is left out, and that is said. Ports are free ones. What is
printed is what was seen; the exit status is 0 where all of it went well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from include.home import PROJECT
from include.laptop.datasets import GOOD, MODEL, QUESTION
from include.laptop.rest import Airflow, wait_for_dag

HERE = Path(__file__).parent
NAME = "anemone-come-up"
STAND_INS = {"postgres": "postgres", "redis": "redis", "store": "store", "prometheus": "prometheus"}
ONCE = ("secrets", "bucket", "database")
HEALTHY_SECONDS = 900.0
RUN_SECONDS = 2400.0
INBOX = f"/var/lib/anemone/inbox/{GOOD.title}.jsonl"


class NotSeenError(Exception):
    """Something did not happen."""


class Stack:
    """The composed services under a project name of their own."""

    def __init__(self) -> None:
        self.ports = {name: _free_port() for name in _port_variables()}
        self._environment = {**os.environ, **{name: str(port) for name, port in self.ports.items()}}
        modern = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        if not modern and shutil.which("docker-compose") is None:
            raise NotSeenError("there is neither `docker compose` nor `docker-compose`: install one")
        self._command = [*(["docker", "compose"] if modern else ["docker-compose"]), "--project-name", NAME]

    def __call__(self, *arguments: str, capture: bool = False) -> str:
        result = subprocess.run(
            [*self._command, *arguments],
            cwd=PROJECT,
            env=self._environment,
            stdout=subprocess.PIPE if capture else None,
            text=True,
        )
        if result.returncode:
            raise NotSeenError(f"`{' '.join([*self._command, *arguments])}` ended with {result.returncode}")
        return result.stdout or ""

    def states(self) -> dict[str, str]:
        """State of each service's container: Docker's health, or its status where it has none, or `done`, `failed`."""
        label = f"label=com.docker.compose.project={NAME}"
        ids = _docker("ps", "--all", "--quiet", "--filter", label).split()
        states = {}
        for container in json.loads(_docker("inspect", *ids)) if ids else []:
            state = container["State"]
            service = container["Config"]["Labels"]["com.docker.compose.service"]
            if service in ONCE and state["Status"] == "exited":
                states[service] = "done" if state["ExitCode"] == 0 else "failed"
            else:
                states[service] = state.get("Health", {}).get("Status", state["Status"])
        return states

    def inside(self, service: str, *command: str) -> str:
        return self("exec", "-T", service, *command, capture=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave it up")
    parser.add_argument("--base", default="python:3.11-slim-bookworm", help="of the stand-ins")
    parser.add_argument("--build-base", help="on which the stand-ins' environments are made")
    given = parser.parse_args()
    try:
        missing = _images(given.base, given.build_base or given.base)
        stack = Stack()
    except NotSeenError as error:
        sys.exit(f"error: {error}")
    try:
        _come_up(stack, missing)
        _work(stack)
    except NotSeenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if given.keep:
            print(f"left up: Airflow on port {stack.ports['ANEMONE_PORT']}, project {NAME}")
        else:
            stack("down", "--volumes", "--timeout", "30")
    return 0


def _images(base: str, build_base: str) -> list[str]:
    """See that every image is here; returns the services whose image cannot be had."""
    missing = []
    for service, definition in _services().items():
        image = _default(definition["image"])
        if _has(image):
            continue
        if image.startswith("anemone/"):
            raise NotSeenError(f"the image {image} is not here: `make images`")
        if subprocess.run(["docker", "pull", "--quiet", image], capture_output=True).returncode == 0:
            continue
        if service not in STAND_INS:
            print(f"{service}: {image} cannot be had here, and has no stand-in; left out")
            missing.append(service)
            continue
        print(f"{service}: {image} cannot be had here; made from Debian's packages")
        arguments = ["--build-arg", f"BASE={base}", "--build-arg", f"BUILD_BASE={build_base}"]
        _docker("build", "--quiet", "--network", "host", *arguments, "--target", STAND_INS[service], "--tag", image,
                "--file", str(HERE / "stand_ins.Dockerfile"), str(HERE))  # fmt: skip
    return missing


def _come_up(stack: Stack, missing: list[str]) -> None:
    began = time.monotonic()
    expected = set(_services()) - set(missing)
    stack("up", "--detach", *sorted(expected))
    good = {"healthy", "done", "running"}
    seen: dict[str, str] = {}
    while True:
        states = stack.states()
        for service, state in sorted(states.items()):
            if seen.get(service) != state:
                print(f"{time.monotonic() - began:6.0f} s  {service:18} {state}", flush=True)
        seen = states
        waits = {name for name in expected if "healthcheck" in _services()[name]}
        if expected <= set(states) and all(
            state == "healthy" if name in waits else state == ("done" if name in ONCE else "running")
            for name, state in states.items()
        ):
            print(f"all {len(expected)} services are up after {time.monotonic() - began:.0f} s")
            return
        bad = [name for name, state in states.items() if state not in good | {"starting", "created", "unhealthy"}]
        if bad or time.monotonic() - began > HEALTHY_SECONDS:
            names = bad or sorted(name for name, state in states.items() if state not in good)
            stack("logs", "--tail", "40", *names)
            raise NotSeenError(f"not up after {time.monotonic() - began:.0f} s: {', '.join(names)}")
        time.sleep(2)


def _work(stack: Stack) -> None:
    password = json.loads(stack.inside("api-server", "cat", "/run/anemone/airflow/passwords.json"))["admin"]
    airflow = Airflow(f"http://127.0.0.1:{stack.ports['ANEMONE_PORT']}", "admin", password)
    for dag in ("arrivals", "customize", "candidates", "release"):
        wait_for_dag(airflow, dag, timeout=240)
    command = ["/opt/venvs/jobs/bin/python", "-m", "jobs.demo.generate.write", GOOD.variant, "--rows", str(GOOD.rows)]
    stack.inside("worker", *command, "--seed", str(GOOD.seed), "--out", INBOX)
    print(f"{GOOD.rows} rows put into the inbox")
    _ends_well(airflow, "customize")
    _ends_well(airflow, "release")
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    router = f"http://127.0.0.1:{stack.ports['ROUTER_PORT']}"
    answer = httpx.post(f"{router}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    print(f"asked     {QUESTION}\nanswered  {answer.json()['choices'][0]['message']['content']}")
    targets = httpx.get(f"http://127.0.0.1:{stack.ports['PROMETHEUS_PORT']}/api/v1/targets", trust_env=False).json()
    for target in targets["data"]["activeTargets"]:
        print(f"prometheus: {target['labels']['job']} {target['health']} {target['lastError']}".rstrip())


def _ends_well(airflow: Airflow, dag: str) -> None:
    """Follow the first run of a DAG, one line for each change of a task's state."""
    began = time.monotonic()
    seen: dict[str, str | None] = {}
    while True:
        for run in airflow.run_ids(dag)[-1:]:
            for task in airflow.task_instances(dag, run):
                if task["state"] != seen.get(task["task_id"]):
                    seen[task["task_id"]] = task["state"]
                    print(f"{time.monotonic() - began:6.0f} s  {dag}.{task['task_id']:18} {task['state']}", flush=True)
            state = airflow.run(dag, run)["state"]
            if state == "success":
                print(f"{dag}: success after {time.monotonic() - began:.0f} s")
                return
            if state == "failed":
                raise NotSeenError(f"{dag} failed: {_why(airflow, dag, run)}")
        if time.monotonic() - began > RUN_SECONDS:
            raise NotSeenError(f"{dag} has not ended after {RUN_SECONDS:.0f} s")
        time.sleep(2)


def _why(airflow: Airflow, dag: str, run: str) -> str:
    for task in airflow.task_instances(dag, run):
        if task["state"] == "failed":
            log = airflow.log(dag, run, task["task_id"], task["try_number"])
            return f"{task['task_id']}: " + " | ".join(str(record.get("event", ""))[:400] for record in log[-6:])
    return "no task of it did"


def _services() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]


def _port_variables() -> list[str]:
    text = (PROJECT / "docker-compose.yaml").read_text(encoding="utf-8")
    return re.findall(r'ports: \["127\.0\.0\.1:\$\{(\w+):-', text)


def _default(value: str) -> str:
    """A value of the file as it stands where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _has(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0


def _docker(*arguments: str) -> str:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise NotSeenError(f"`docker {' '.join(arguments)}` failed: {result.stderr.strip()[-600:]}")
    return result.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
