"""A namespace of the cluster that KUBECONFIG names: what a test makes there, sees there, and reaches from here."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests import waiting
from tests.ports import free_home_port

JOBS_IMAGE = os.environ.get("ANEMONE_JOBS_IMAGE") or "anemone/jobs:0.1.0"
SERVING_IMAGE = os.environ.get("ANEMONE_SERVING_IMAGE") or "anemone/serving:0.1.0"
AIRFLOW_IMAGE = os.environ.get("ANEMONE_AIRFLOW_IMAGE") or "anemone/airflow:0.1.0"
KEY, SECRET, REGION, TOKEN = "who-tests", "and-what-it-knows", "us-east-1", "a-token-for-tests"

_S3_SERVER = (
    *(f"moto/{part}" for part in ("cloudwatch", "core", "events", "iam", "moto_api", "moto_server")),
    *(f"moto/{part}" for part in ("s3", "s3bucket_path", "sts", "utilities")),
    *("boto3", "py_partiql_parser", "responses", "s3transfer", "xmltodict.py"),
)
"""What the jobs' image lacks of moto's server; small enough for a ConfigMap, as the whole of moto is not."""


wait_for = partial(waiting.wait_for, every=1.0)
"""Waits for what a cluster does: each look at it is a process of its own."""


def need_cluster() -> None:
    """Skip the test where there is no cluster to ask."""
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG names no cluster")
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")


def need_resource(api: str, plural: str) -> None:
    """Skip the test where the cluster does not serve a custom resource; `api` is its group and version."""
    need_cluster()
    found = subprocess.run(["kubectl", "get", "--raw", f"/apis/{api}"], capture_output=True, text=True)
    served = json.loads(found.stdout)["resources"] if found.returncode == 0 else []
    if plural not in {resource["name"] for resource in served}:
        pytest.skip(f"the cluster does not serve {plural} of {api}: its custom resource definition is not there")


class Namespace:
    """One namespace, in which a test does what a person does with kubectl.

    Attributes:
        s3_endpoint: of the store, as pods see it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.s3_endpoint = os.environ.get("ANEMONE_S3_ENDPOINT") or f"http://store.{name}:9000"

    @classmethod
    @contextmanager
    def made(cls, name: str) -> Iterator[Self]:
        """A new one, which goes with all that is in it."""
        found = cls(name)
        found.kubectl("create", "namespace", name)
        try:
            yield found
        finally:
            found.kubectl("delete", "namespace", name, "--timeout=600s")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = ["kubectl", "--namespace", self.name, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout

    def create(self, *objects: Mapping[str, Any]) -> None:
        documents = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("create", "--filename", "-", stdin=json.dumps(documents))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        found = self.kubectl("get", kind, name, "--ignore-not-found", "--output", "json")
        return json.loads(found) if found.strip() else None

    def listed(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return json.loads(self.kubectl("get", kind, "--selector", selector, "--output", "json"))["items"]

    def delete(self, kind: str, name: str, *options: str) -> None:
        self.kubectl("delete", kind, name, "--ignore-not-found", *options)

    def kubeconfig(self, account: str, folder: Path) -> Path:
        """A way to the cluster as one of the namespace's service accounts, for an hour."""
        found = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
        token = self.kubectl("create", "token", account).strip()
        found["users"] = [{"name": user["name"], "user": {"token": token}} for user in found["users"]]
        path = folder / f"{account}.kubeconfig"
        path.write_text(json.dumps(found))
        return path

    def uid(self, kind: str, name: str) -> str | None:
        found = self.get(kind, name)
        return found["metadata"]["uid"] if found else None

    def phase(self, pod: str) -> str | None:
        found = self.get("pod", pod)
        return found["status"]["phase"] if found else None

    def log(self, pod: str, *container: str) -> str:
        return self.kubectl("logs", pod, *container)

    def wait_ready(self, name: str, seconds: float = 300) -> None:
        """Until a pod is ready; one that has ended never will be."""

        def ready() -> bool:
            found = self.get("pod", name)
            assert found is not None and found["status"]["phase"] in ("Pending", "Running"), told()
            return any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", ()))

        def told() -> str:
            return f"pod {name}:\n{self.kubectl('describe', 'pod', name)[-1500:]}\n{self.log(name)[-3000:]}"

        wait_for(ready, seconds, told)

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """The address under which this machine reaches a Service meanwhile; kubectl is started again where it ends."""
        local = free_home_port()
        command = ["kubectl", "--namespace", self.name, "port-forward", f"service/{service}", f"{local}:{port}"]
        stopped, process = threading.Event(), [_start(command)]

        def keep() -> None:
            while not stopped.is_set():
                if process[0].poll() is not None:
                    process[0] = _start(command)
                stopped.wait(0.5)

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{local}"
            wait_for(lambda: _answers(url), 60, f"{service} to answer")
            yield url
        finally:
            stopped.set()
            thread.join()
            process[0].terminate()
            process[0].wait()


def connection(kubeconfig: str | Path) -> str:
    """Airflow's connection to the cluster that a kubeconfig names, as an environment variable has it."""
    extra = {"kube_config_path": str(kubeconfig), "in_cluster": False}
    return json.dumps({"conn_type": "kubernetes", "extra": json.dumps(extra)})


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        httpx.get(url, timeout=5, trust_env=False)
        return True
    return False


def store(name: str = "store") -> list[dict[str, Any]]:
    """An S3 server as a pod of the jobs' image, whose objects live as long as it does."""
    unpack = "import tarfile; tarfile.open('/moto/moto.tar.xz').extractall('/scratch/moto')"
    start = f'python -c "{unpack}" && PYTHONPATH=/scratch/moto exec python -m moto.server --host 0.0.0.0 --port 9000'
    server = pod(name, JOBS_IMAGE, ["sh", "-c", start], port=9000, memory="2Gi")
    # A name with a dot is not one of a bucket: the store is reached from other namespaces, too.
    server["spec"]["containers"][0]["env"].append({"name": "S3_IGNORE_SUBDOMAIN_BUCKETNAME", "value": "true"})
    server["spec"]["containers"][0]["volumeMounts"].append({"name": "moto", "mountPath": "/moto", "readOnly": True})
    server["spec"]["volumes"].append({"name": "moto", "configMap": {"name": name}})
    content = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "binaryData": {}}
    content["binaryData"]["moto.tar.xz"] = _packed()
    return [content, server, service(name, 9000)]


def mlflow(artifacts: str, name: str = "mlflow") -> list[dict[str, Any]]:
    """MLflow's server as a pod of the jobs' image; what is logged goes to the URI `artifacts`."""
    command = ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1", "--no-serve-artifacts"]
    command += ["--backend-store-uri=sqlite:////scratch/mlflow.db", f"--default-artifact-root={artifacts}"]
    command += [f"--allowed-hosts={name}:5000,localhost:*,127.0.0.1:*"]
    server = pod(name, JOBS_IMAGE, command, port=5000, memory="2Gi")
    server["spec"]["containers"][0]["env"] += [{"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"}]
    return [server, service(name, 5000)]


def pod(
    name: str, image: str, command: list[str], *, port: int | None = None, memory: str = "1Gi", **spec: Any
) -> dict[str, Any]:
    """A pod beside the jobs, as locked down as they are."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": [{"name": "TMPDIR", "value": "/scratch"}],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    if port is not None:
        container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
            **spec,
        },
    }


def service(name: str, port: int) -> dict[str, Any]:
    spec = {"selector": {"app": name}, "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def secret(name: str, **values: str) -> dict[str, Any]:
    values = {key.replace("_", "-"): value for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def _packed() -> str:
    """The S3 server's modules of this environment, as a ConfigMap wants bytes."""
    moto = find_spec("moto")
    assert moto is not None and moto.origin is not None
    packages = Path(moto.origin).parents[1]
    # moto asks for the version of responses.
    files = [*(packages / "moto").glob("*.py"), *packages.glob("responses-*.dist-info")]
    files += [packages / part for part in _S3_SERVER]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for file in files:
            archive.add(file, file.relative_to(packages), filter=_code)
    return base64.b64encode(packed.getvalue()).decode()


def _code(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("__pycache__") else entry
