"""A training of several nodes as objects of a cluster: made, completed, and deleted all together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry
from kubernetes.client import CoreV1Api, CustomObjectsApi, V1DeleteOptions, V1Preconditions
from kubernetes.client.exceptions import ApiException

from operators.kubernetes.pod_failures import OVERDUE_SECONDS, refused
from operators.kubernetes.workloads import SERVICE, Form, Kind

_PAUSE_SECONDS = 2.0


class TrainingObjects:
    """What belongs to the training `name`: the object that is the training, and those beside it, which it owns.

    Every method raises ApiException or urllib3's HTTPError where the Kubernetes API is away, JobFailedError where it
    refuses.

    Attributes:
        uid: of the training that is meant, as soon as it is known: `delete` spares another of its name.
    """

    def __init__(self, hook: KubernetesHook, namespace: str, form: Form, name: str, uid: str | None = None) -> None:
        self.name, self.form, self.uid = name, form, uid
        self._hook, self._namespace = hook, namespace

    @property
    def _core(self) -> CoreV1Api:
        return self._hook.core_v1_client

    @property
    def _custom(self) -> CustomObjectsApi:
        return self._hook.custom_object_client

    def find(self) -> dict[str, Any] | None:
        """The training as it is now."""
        return self._read(self.form.kind, self.name)

    def make(self, template: dict[str, Any], *, nodes: int, processes: int) -> bool:
        """Make everything, or nothing; False where another has just made the training."""
        form, name = self.form, self.name
        for kind, body in form.before(name, template):
            self._make(kind, body)
        try:
            training = self._create(form.kind, form.render(name, template, nodes=nodes, processes=processes))
        except ApiException as error:
            if self.find() is not None:
                if error.status == 409:
                    return False
            else:
                for kind, body in form.before(name, template):
                    self._delete(kind, body["metadata"]["name"])
            raise refused(error, f"make training {name}") from None
        self.uid = training["metadata"]["uid"]
        try:
            self.complete(training, template)
        except BaseException:
            self.delete()
            raise
        return True

    def complete(self, training: Mapping[str, Any], template: dict[str, Any]) -> None:
        """Make what the training still lacks beside it, and let it own all, so that its deletion takes all along."""
        owner = {
            "apiVersion": training["apiVersion"],
            "kind": training["kind"],
            "name": self.name,
            "uid": training["metadata"]["uid"],
        }
        for kind, body in self.form.after(self.name, template):
            body["metadata"]["ownerReferences"] = [owner]
            self._make(kind, body)
        for kind, body in self.form.before(self.name, template):
            where = (kind.group, kind.version, self._namespace, kind.plural, body["metadata"]["name"])
            self._custom.patch_namespaced_custom_object(*where, {"metadata": {"ownerReferences": [owner]}})

    def delete(self) -> None:
        """Delete the training, where there is one: its pods save, and end."""
        self._delete(self.form.kind, self.name, self.uid)

    def _make(self, kind: Kind, body: dict[str, Any]) -> None:
        """An object beside the training; one that an earlier training has left goes first."""
        name, until = body["metadata"]["name"], time.monotonic() + OVERDUE_SECONDS
        while True:
            try:
                self._create(kind, body)
                return
            except ApiException as error:
                if error.status != 409 or time.monotonic() > until:
                    raise refused(error, f"make {body['kind']} {name}") from None
            found = self._read(kind, name)
            owners = [owner["uid"] for owner in (found or {}).get("metadata", {}).get("ownerReferences", ())]
            if owners == [owner["uid"] for owner in body["metadata"].get("ownerReferences", ())] and owners:
                return
            self._delete(kind, name, found["metadata"]["uid"] if found else None)
            time.sleep(_PAUSE_SECONDS)

    def _read(self, kind: Kind, name: str) -> dict[str, Any] | None:
        try:
            if kind == SERVICE:
                found = self._core.read_namespaced_service(name, self._namespace)
                return self._core.api_client.sanitize_for_serialization(found)
            return self._custom.get_namespaced_custom_object(
                kind.group, kind.version, self._namespace, kind.plural, name
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _create(self, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        if kind == SERVICE:
            made = self._core.create_namespaced_service(self._namespace, body)
            return self._core.api_client.sanitize_for_serialization(made)
        return self._custom.create_namespaced_custom_object(
            kind.group, kind.version, self._namespace, kind.plural, body
        )

    @generic_api_retry
    def _delete(self, kind: Kind, name: str, uid: str | None = None) -> None:
        options = V1DeleteOptions(preconditions=V1Preconditions(uid=uid))
        try:
            if kind == SERVICE:
                self._core.delete_namespaced_service(name, self._namespace, body=options)
                return
            # In the body, too: the API server reads nothing else where there is one.
            options.propagation_policy = "Foreground"
            where = (kind.group, kind.version, self._namespace, kind.plural, name)
            self._custom.delete_namespaced_custom_object(*where, body=options)
        except ApiException as error:
            # 409: another has its name by now.
            if error.status not in (404, 409):
                raise
