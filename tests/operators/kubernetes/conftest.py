"""A small Kubernetes API that Airflow's connection names, and a platform whose cluster it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.providers.cncf.kubernetes import kubernetes_helper_functions

from include.artifacts.store import Store
from include.platforms import Platform, load_platform
from tests.operators.kubernetes.api import TrainingPeer


@pytest.fixture
def peer_class() -> type[TrainingPeer]:
    """What answers as the API server."""
    return TrainingPeer


@pytest.fixture
def kubernetes(
    peer_class: type[TrainingPeer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainingPeer]:
    peer = peer_class(tmp_path)
    extra = json.dumps({"kube_config_path": str(peer.kubeconfig), "in_cluster": False})
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    # The triggerer has its own way to a connection; in a test it is the same.
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setattr(kubernetes_helper_functions, "_default_wait", lambda state: 0.01)
    yield peer
    peer.close()


@pytest.fixture
def platform(store: Store, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The platform `cpu-cluster` with a store on this machine."""
    for name in [name for name in os.environ if name.startswith("ANEMONE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ANEMONE_STORE", "s3://bucket/anemone")
    load_platform.cache_clear()
    found = load_platform("cpu-cluster")
    load_platform.cache_clear()
    found = found.model_copy(update={"store": store.root, "grace_seconds": 5.0})
    monkeypatch.setattr("operators.job.current_platform", lambda: found)
    return found
