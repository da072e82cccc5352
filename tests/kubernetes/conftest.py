"""A namespace for one session of tests, with a store and an MLflow in it; nothing of it is left behind.

ANEMONE_JOBS_IMAGE, ANEMONE_SERVING_IMAGE, ANEMONE_AIRFLOW_IMAGE name the images, which the nodes have, or can pull;
they hold the code of this checkout. ANEMONE_NAMESPACE names the namespace, which must not exist. ANEMONE_STORE,
ANEMONE_S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name a store of yours, to be reached from here and from
the pods, where the one that the tests bring is not wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest

from include.artifacts.s3 import Access, Bucket
from include.artifacts.store import Store
from include.platforms import Platform, load_platform
from include.platforms.cluster import Size
from tests.kubernetes.namespace import (
    JOBS_IMAGE,
    KEY,
    REGION,
    SECRET,
    SERVING_IMAGE,
    TOKEN,
    Namespace,
    connection,
    mlflow,
    need_cluster,
    secret,
    store,
)
from tests.kubernetes.serving import deploy
from tests.toy_releases import make_engines


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """The namespace; this process's own environment is that of Airflow's components, who reach it from outside."""
    need_cluster()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        name = os.environ.get("ANEMONE_NAMESPACE") or f"anemone-test-{uuid4().hex[:8]}"
        found = stack.enter_context(Namespace.made(name))
        own = os.environ.get("ANEMONE_STORE")
        root = f"{own.rstrip('/')}/{found.name}" if own else "s3://anemone/store"
        identity = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) if own else (KEY, SECRET)
        found.create(
            secret("store-credentials", access_key=identity[0], secret_key=identity[1]),
            secret("serving-token", token=TOKEN),
            *([] if own else store()),
            *mlflow(f"{root}/mlflow"),
        )
        found.wait_ready("mlflow")
        if own is None:
            found.wait_ready("store")
            patch.setenv("AWS_ENDPOINT_URL_S3", stack.enter_context(found.forward("store", 9000)))
        elif endpoint := os.environ.get("ANEMONE_S3_ENDPOINT"):
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        token = tmp_path_factory.mktemp("serving") / "token"
        token.write_text(TOKEN)
        for name, value in {
            "ANEMONE_PLATFORM": "cpu-cluster",
            "ANEMONE_NAMESPACE": found.name,
            "ANEMONE_STORE": root,
            "ANEMONE_JOBS_IMAGE": JOBS_IMAGE,
            "ANEMONE_SERVING_IMAGE": SERVING_IMAGE,
            "AWS_ACCESS_KEY_ID": identity[0],
            "AWS_SECRET_ACCESS_KEY": identity[1],
            "AWS_DEFAULT_REGION": os.environ.get("ANEMONE_S3_REGION") or REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": connection(os.environ["KUBECONFIG"]),
        }.items():
            patch.setenv(name, value)
        if own is None:
            Access().connect().create_bucket(Bucket="anemone")
        else:
            stack.callback(Bucket(root, Access()).delete, "")
        load_platform.cache_clear()
        stack.callback(load_platform.cache_clear)
        yield found


@pytest.fixture
def platform(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The platform as it is shipped, with pods that are small, and some that are too small; `use` changes it."""
    found = load_platform("cpu-cluster")
    assert found.cluster is not None
    tiny = {"tiny": Size(cpu="50m", memory="24Mi", scratch="100Mi"), "huge": Size(cpu="5000", memory="1Gi")}
    cluster = found.cluster.model_copy(update={"sizes": {**found.cluster.sizes, **tiny}})
    found = found.model_copy(update={"cluster": cluster, "grace_seconds": 20.0})
    monkeypatch.setattr("operators.job.current_platform", lambda: found)
    return found


@pytest.fixture
def use(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the platform's cluster section for the rest of a test."""

    def change(**update: Any) -> None:
        cluster = platform.cluster.model_copy(update=update)  # type: ignore[union-attr]
        monkeypatch.setattr("operators.job.current_platform", lambda: platform.model_copy(update={"cluster": cluster}))

    return change


@pytest.fixture
def run() -> str:
    """The id of a run that nobody else has."""
    return f"manual__{uuid4().hex[:8]}"


@pytest.fixture
def artifacts(namespace: Namespace) -> Store:
    """The store, as Airflow's components see it."""
    return Store(os.environ["ANEMONE_STORE"])


@pytest.fixture(scope="session")
def serving(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The serving side, and the address of its router."""
    deploy(namespace, tmp_path_factory.mktemp("overlay"))
    with namespace.forward("router", 8000) as url:
        yield url


@pytest.fixture(scope="session")
def engines(namespace: Namespace) -> list[dict[str, Any]]:
    """Of the versions 1 and 2 of a model, in the store."""
    return make_engines(os.environ["ANEMONE_STORE"])


@pytest.fixture(scope="session")
def source(namespace: Namespace) -> str:
    """A small data set of somebody's, beside the store."""
    rows = [{"prompt": f"show pod web-{number}", "completion": f"kubectl get pod web-{number}"} for number in range(20)]
    root = f"{os.environ['ANEMONE_STORE']}/data"
    Bucket(root, Access()).put("small.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return f"{root}/small.jsonl"
