"""The serving side as it is shipped, with less asked of the nodes, and no volumes; and rollouts on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import yaml

from include.home import PROJECT
from tests import toy_releases
from tests.kubernetes.namespace import SERVING_IMAGE, TOKEN, Namespace, pod, wait_for

_KUBERNETES = PROJECT / "include" / "deploy" / "kubernetes"
_POD = "/spec/template/spec/containers"


POLICY = {
    **toy_releases.POLICY,
    "step_seconds": 4,
    "look_seconds": 1,
    "max_seconds": 240,
    "baseline_requests": 30,
    "baseline_seconds": 20,
    # The nodes of a test are busy with more than this: how long an answer takes is not what is looked at here.
    "latency_tolerance": 20,
}


class Controller:
    """The canary controller, as a person asks it.

    Attributes:
        url: its address from here.
    """

    def __init__(self, url: str, target: str, engines: Sequence[dict[str, Any]]) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)
        self._target, self._engines = target, engines

    def status(self, rollout: str) -> dict[str, Any]:
        """How a rollout stands; nothing where the controller cannot say."""
        try:
            answer = self._http.get(f"/rollouts/{rollout}")
        except httpx.HTTPError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    def begin(self, version: int, champion: str | None, **more: Any) -> str:
        """Ask for a rollout of version 1 or 2; its id."""
        release = {"model": self._target, "version": str(version), "engine": self._engines[version - 1]}
        request = {"id": f"release-{uuid4().hex[:8]}", "kind": "release", "target": self._target, "policy": POLICY}
        request |= {"release": release, "expected_champion": champion, **more}
        answer = self._http.post("/rollouts", json=request)
        assert answer.status_code in (200, 201), answer.text
        return request["id"]

    def ended(self, rollout: str) -> dict[str, Any]:
        """How it stands at its end."""

        def finished() -> bool:
            return self.status(rollout).get("state") == "finished"

        wait_for(finished, 600, lambda: f"the end of the rollout: {self.status(rollout)}")
        return self.status(rollout)

    def lead(self, version: int, champion: str | None, **more: Any) -> dict[str, Any]:
        return self.ended(self.begin(version, champion, **more))


@contextmanager
def controller(namespace: Namespace, target: str, engines: Sequence[dict[str, Any]]) -> Iterator[Controller]:
    with namespace.forward("canary-controller", 8002) as url:
        yield Controller(url, target, engines)


@contextmanager
def clients(namespace: Namespace, router: str, target: str, rate: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """Clients in a pod of their own, so many requests a second; what they saw so far."""
    name = f"traffic-{uuid4().hex[:8]}"
    options = [f"--url=http://{router}:8000", f"--model={target}", f"--rate={rate}"]
    command = ["python", "-m", "jobs.serving.traffic", *options]
    namespace.create(pod(name, SERVING_IMAGE, [*command, "--out=/scratch/counts.json"]))

    def counts() -> dict[str, Any]:
        return json.loads(namespace.kubectl("exec", name, "--", "cat", "/scratch/counts.json"))

    def begun() -> bool:
        try:
            return counts()["answered"] > 20
        except (AssertionError, ValueError):
            return False

    try:
        wait_for(begun, 120, lambda: namespace.log(name))
        yield counts
    finally:
        namespace.delete("pod", name, "--now")


@contextmanager
def without_store(namespace: Namespace) -> Iterator[None]:
    """No pod reaches the store: its Service leads nowhere meanwhile. This machine's own way there stays open."""

    def lead_to(app: str) -> None:
        namespace.kubectl("patch", "service", "store", "--patch", json.dumps({"spec": {"selector": {"app": app}}}))

    lead_to("nobody")
    try:
        yield
    finally:
        lead_to("store")


def deploy(namespace: Namespace, folder: Path, *components: str) -> None:
    """`kubectl apply --kustomize` of an overlay as the README of a cluster would have it."""
    name, _, pinned = SERVING_IMAGE.partition("@")
    repository, _, tag = name.rpartition(":")
    image = {"newName": name, "digest": pinned} if pinned else {"newName": repository, "newTag": tag}
    place = [f"ANEMONE_STORE={os.environ['ANEMONE_STORE']}", f"AWS_DEFAULT_REGION={os.environ['AWS_DEFAULT_REGION']}"]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace.name,
        "resources": [os.path.relpath(_KUBERNETES / "serving", folder)],
        "components": [os.path.relpath(_KUBERNETES / name, folder) for name in ("ephemeral", *components)],
        "images": [{"name": "anemone/serving", **image}],
        "configMapGenerator": [
            {
                "name": "serving",
                "behavior": "merge",
                "literals": [*place, f"AWS_ENDPOINT_URL_S3={namespace.s3_endpoint}"],
            }
        ],
        "patches": [
            _asks_for("triton-stable|triton-canary", {"cpu": "100m", "memory": "512Mi"}),
            _asks_for("router|router-canary|canary-controller", {"cpu": "50m", "memory": "256Mi"}),
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    namespace.kubectl("apply", "--kustomize", str(folder))
    for deployment in ("router", "canary-controller", "triton-stable", "triton-canary"):
        namespace.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=300s")


def _asks_for(target: str, requests: dict[str, str]) -> dict[str, Any]:
    patch = [{"op": "replace", "path": f"{_POD}/0/resources/requests", "value": requests}]
    return {"target": {"kind": "Deployment", "name": target}, "patch": json.dumps(patch)}
