"""The serving side in a namespace of its own: as it is shipped, with less asked of the nodes, and no volumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from include.code_identity import PROJECT
from tests.kubernetes.namespace import SERVING_IMAGE, Namespace

_KUBERNETES = PROJECT / "include" / "deploy" / "kubernetes"
_POD = "/spec/template/spec/containers"


def deploy(namespace: Namespace, folder: Path) -> None:
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
        "components": [os.path.relpath(_KUBERNETES / "ephemeral", folder)],
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
            _asks_for("router|canary-controller", {"cpu": "50m", "memory": "256Mi"}),
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    namespace.kubectl("apply", "--kustomize", str(folder))
    for deployment in ("router", "canary-controller"):
        namespace.kubectl("rollout", "status", f"deployment/{deployment}", "--timeout=300s")


def _asks_for(target: str, requests: dict[str, str]) -> dict[str, Any]:
    patch = [{"op": "replace", "path": f"{_POD}/0/resources/requests", "value": requests}]
    return {"target": {"kind": "Deployment", "name": target}, "patch": json.dumps(patch)}
