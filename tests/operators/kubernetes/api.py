"""As much of a Kubernetes API as a task needs, over real HTTP, and a kubelet that runs jobs on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import yaml

from include.home import PROJECT

Pod = dict[str, Any]

USER = "system:serviceaccount:anemone:airflow"
"""Airflow's, as the API server names it in a refusal."""
CONDITION = {"lastProbeTime": None, "lastTransitionTime": "2026-01-01T00:00:00Z"}


class KubernetesPeer:
    """Keeps pods as they are created, changed by the test, and deleted.

    Attributes:
        requests: every one, as "METHOD path".
        refusal: (status, message) that answers each creation.
        answers: (status, message) that answers every request of a method, or about a kind by its plural.
        failing: how many requests get a 503 from now on.
        losing: how many creations are carried out from now on, and answered as if they were not.
        on_create: what happens to a new pod; by default it stays pending.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.logs: dict[str, str] = {}
        self._stamps: dict[str, list[str]] = {}
        self.events: list[Pod] = []
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.answers: dict[str, tuple[int, str]] = {}
        self.failing = self.losing = 0
        self.vanishing: tuple[int, str] | None = None
        self.on_create: Callable[[Pod], None] = lambda pod: None
        self.lock = threading.RLock()
        self._processes: list[subprocess.Popen[str]] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                url = urlsplit(self.path)
                peer.requests.append(f"{self.command} {url.path}")
                with peer.lock:
                    status, answer = peer.answer(self.command, url.path.strip("/").split("/"), body, url.query)
                if status == 201 and peer.losing > 0:
                    peer.losing -= 1
                    status, answer = _status(504, "the API server gave no answer in time")
                text = isinstance(answer, str)
                payload = answer.encode() if text else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_DELETE = do_PATCH = _do  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.kubeconfig = folder / "kubeconfig"
        user = {"token": "planted-kubernetes-token"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def answer(self, method: str, path: list[str], body: Pod, query: str) -> tuple[int, Any]:
        for key in (method, *path[4:5]):
            if key in self.answers:
                return _status(*self.answers[key])
        if self.failing > 0:
            self.failing -= 1
            return _status(503, "the API server is being replaced")
        if self.vanishing is not None and len(self.requests) > self.vanishing[0]:
            self.pods.pop(self.vanishing[1], None)
        match method, path[4:]:
            case "POST", ["pods"]:
                return self._create(body)
            case "GET", ["pods"]:
                return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(self.pods.values())}
            case "GET", ["events"]:
                wanted = (parse_qs(query).get("fieldSelector") or [""])[0]
                chosen = [event for event in self.events if _selects(wanted, event)]
                return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": chosen}
            case method, ["pods", name, *rest] if name in self.pods:
                if rest == ["log"]:
                    return 200, self._log(name, {key.lower(): found[0] for key, found in parse_qs(query).items()})
                if method == "DELETE":
                    return self._delete(self.pods[name], body, query)
                return 200, self.pods[name]
            case _, ["pods", name, *_]:
                return _status(404, f'pods "{name}" not found')
        return _status(404, f"nothing at {'/'.join(path)}")

    def status(self, pod: Pod, phase: str, **more: Any) -> None:
        """Say how a pod stands; `state` is the state of its container, in Kubernetes' words."""
        with self.lock:
            state = more.pop("state", None)
            if state is not None:
                container = pod["spec"]["containers"][0]
                found = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False}
                more["containerStatuses"] = [{**found, "restartCount": 0, "state": state}]
            pod["status"] = {"phase": phase, **more}

    def vanish(self, name: str) -> None:
        with self.lock:
            del self.pods[name]

    def vanish_after(self, requests: int, name: str) -> None:
        """Take a pod away after that many more requests."""
        self.vanishing = (len(self.requests) + requests, name)

    def run(self, pod: Pod) -> None:
        """Do what a kubelet does: run the container's command, and report how it ended."""
        container = pod["spec"]["containers"][0]
        name = pod["metadata"]["name"]
        message = self.folder / f"{name}.termination"
        message.write_text("")
        given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        here = {
            **given,
            **{key: str(self.folder) for key in ("HOME", "TMPDIR")},
            "PATH": os.environ["PATH"],
            "ANEMONE_TERMINATION_LOG": str(message),
        }
        command = [sys.executable, *container["command"][1:]]
        process = subprocess.Popen(
            command, cwd=PROJECT, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._processes.append(process)
        self.status(pod, "Running", state={"running": {"startedAt": now()}}, startTime=now())

        def follow() -> None:
            self.logs[name] = process.communicate()[0]
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            ended = {"exitCode": code, "message": message.read_text(), "reason": "Error" if code else "Completed"}
            self.status(pod, "Failed" if code else "Succeeded", state={"terminated": {**ended, "finishedAt": now()}})

        threading.Thread(target=follow, daemon=True).start()

    def stop(self) -> None:
        """SIGTERM to what runs."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)

    def _log(self, name: str, wanted: dict[str, str]) -> str:
        """As kubelet gives it: each line has the time at which it was written, to the nanosecond."""
        lines = self.logs.get(name, "").splitlines()
        stamps = self._stamps.setdefault(name, [])
        while len(stamps) < len(lines):
            stamps.append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}{len(stamps):03d}Z")
        found = [(stamp, line) for stamp, line in zip(stamps, lines, strict=False)]
        found = [(stamp, line) for stamp, line in found if stamp >= wanted.get("sincetime", "").rstrip("Z")]
        found = found[-int(wanted["taillines"]) :] if "taillines" in wanted else found
        stamped = wanted.get("timestamps", "").lower() == "true"
        return "".join(f"{stamp} {line}\n" if stamped else f"{line}\n" for stamp, line in found)

    def _create(self, pod: Pod) -> tuple[int, Any]:
        if self.refusal is not None:
            return _status(*self.refusal)
        name = pod["metadata"]["name"]
        if name in self.pods:
            return _status(409, f'pods "{name}" already exists', reason="AlreadyExists")
        pod["metadata"].update(uid=str(uuid4()), creationTimestamp=now())
        pod["status"] = {"phase": "Pending"}
        self.pods[name] = pod
        self.on_create(pod)
        return 201, pod

    def _delete(self, pod: Pod, options: Pod, query: str) -> tuple[int, Any]:
        if refusal := _another(pod, options):
            return refusal
        grace = int((parse_qs(query).get("gracePeriodSeconds") or [pod["spec"]["terminationGracePeriodSeconds"]])[0])
        if pod["status"]["phase"] in ("Succeeded", "Failed", "Pending"):
            del self.pods[pod["metadata"]["name"]]
        else:
            pod["metadata"].update(deletionTimestamp=now(grace), deletionGracePeriodSeconds=grace)
        return 200, pod


class TrainingPeer(KubernetesPeer):
    """Keeps Jobs, with a pod a node, Services, and what Kubeflow's controllers read; what pods do is the test's affair.

    Attributes:
        refusals: (status, message) that answers the creation of a kind, by its plural.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self.jobs, self.services = {}, {}
        self.kubeflow = {"trainjobs": {}, "trainingruntimes": {}}
        self.refusals = {}
        self.on_job = lambda job: None

    def answer(self, method, path, body, query):
        if self.failing > 0:
            return super().answer(method, path, body, query)
        if method == "POST" and path[-1] in self.refusals:
            return _status(*self.refusals[path[-1]])
        match method, path[-2:], path[-1]:
            case "POST", [_, kind], _ if kind in self.kubeflow:
                return self._keep(self.kubeflow[kind], body)
            case _, [kind, name], _ if kind in self.kubeflow:
                return self._kept(method, self.kubeflow[kind], name, body)
            case "POST", [_, "jobs"], _:
                return self._make_job(body)
            case "POST", [_, "services"], _:
                if self.refusal is not None:
                    return _status(*self.refusal)
                return self._keep(self.services, body)
            case "GET", ["jobs", name], _:
                return (200, self.jobs[name]) if name in self.jobs else _status(404, "not found")
            case "DELETE", ["jobs", name], _:
                return self._delete_job(name, body)
            case _, ["services", name], _:
                return (200, self.services[name]) if name in self.services else _status(404, "not found")
        return super().answer(method, path, body, query)

    def warn(self, name, reason, message, seconds=0):
        """Report an event about an object, as its controller does."""
        metadata = {"name": f"{name}.{len(self.events)}", "namespace": "anemone", "creationTimestamp": now(seconds)}
        about = {"involvedObject": {"name": name}, "lastTimestamp": now(seconds), "type": "Warning"}
        with self.lock:
            self.events.append({"metadata": metadata, "reason": reason, "message": message, **about})

    def end(self, job, kind="Complete", reason=None):
        with self.lock:
            job["status"] = {"conditions": [{**CONDITION, "type": kind, "status": "True", "reason": reason}]}

    def nodes(self, job):
        return [self.pods[f"{job['metadata']['name']}-{index}"] for index in range(job["spec"]["completions"])]

    def exit(self, pod, code, message="", seconds=0):
        ended = {"exitCode": code, "message": message, "finishedAt": now(seconds), "reason": "Error"}
        self.status(pod, "Failed" if code else "Succeeded", state={"terminated": ended})

    def _keep(self, where, body):
        name = body["metadata"]["name"]
        if name in where:
            return _status(409, "already exists", reason="AlreadyExists")
        body["metadata"].update(uid=str(uuid4()), creationTimestamp=now())
        where[name] = body
        return 201, body

    def _kept(self, method, where, name, body):
        if name not in where:
            return _status(404, "not found")
        if method == "PATCH":
            where[name]["metadata"].update(body["metadata"])
        if method != "DELETE":
            return 200, where[name]
        return _another(where[name], body) or (200, where.pop(name))

    def _make_job(self, body):
        code, answer = self._keep(self.jobs, body)
        if code != 201:
            return code, answer
        name, template = body["metadata"]["name"], body["spec"]["template"]
        for index in range(body["spec"]["completions"]):
            labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": str(index)}
            metadata = {"name": f"{name}-{index}", "namespace": "anemone", "labels": labels}
            self._create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(template["spec"])})
        self.on_job(body)
        return 201, body

    def _delete_job(self, name, options=None):
        if name not in self.jobs:
            return _status(404, "not found")
        if refusal := _another(self.jobs[name], options or {}):
            return refusal
        job = self.jobs.pop(name)
        for index in range(job["spec"]["completions"]):
            self.pods.pop(f"{name}-{index}", None)
        self.services.pop(name, None)
        return 200, job


def _selects(selector: str, found: Pod) -> bool:
    """Return whether a field selector, as `involvedObject.name=x,type=Warning`, chooses an object."""
    for path, _, value in (term.partition("=") for term in filter(None, selector.split(","))):
        field: Any = found
        for key in path.split("."):
            field = field.get(key, {})
        if field != value:
            return False
    return True


def _another(found: dict[str, Any], options: dict[str, Any]) -> tuple[int, Pod] | None:
    """What answers a deletion that means another object of the same name."""
    uid = options.get("preconditions", {}).get("uid")
    if uid in (None, found["metadata"]["uid"]):
        return None
    return _status(409, "the UID in the precondition does not match", reason="Conflict")


def _status(code: int, message: str, reason: str = "") -> tuple[int, Pod]:
    document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return code, {**document, "message": message, "reason": reason, "code": code}


def now(seconds: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
