"""The objects of a training on several nodes: created, completed and deleted together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import generic_api_retry
from kubernetes.client import CoreV1Api, CustomObjectsApi, V1DeleteOptions, V1Preconditions
from kubernetes.client.exceptions import ApiException

from operators.kubernetes.pod_failures import OVERDUE_SECONDS, api_error
from operators.kubernetes.workloads import SERVICE, Kind, Workload

_PAUSE_SECONDS = 2.0


class TrainingObjects:
    """The main object of the training `name`, and the other objects, which it owns.

    Every method raises ApiException or urllib3's HTTPError where the Kubernetes API cannot be reached, JobFailedError
    where it refuses.

    Attributes:
        uid: of the training, as soon as it is known: `delete` leaves another one of the same name alone.
    """

    def __init__(
        self, hook: KubernetesHook, namespace: str, workload: Workload, name: str, uid: str | None = None
    ) -> None:
        self.name, self.workload, self.uid = name, workload, uid
        self._hook, self._namespace = hook, namespace

    @property
    def _core(self) -> CoreV1Api:
        return self._hook.core_v1_client

    @property
    def _custom(self) -> CustomObjectsApi:
        return self._hook.custom_object_client

    def find(self) -> dict[str, Any] | None:
        """Return the main object as it is now; None where there is none."""
        return self._read(self.workload.kind, self.name)

    def create(self, template: dict[str, Any], *, nodes: int, processes: int) -> bool:
        """Create everything, or nothing. Return False where another process has just created the training."""
        workload, name = self.workload, self.name
        for kind, body in workload.before(name, template):
            self._replace(kind, body)
        try:
            training = self._create(workload.kind, workload.render(name, template, nodes=nodes, processes=processes))
        except ApiException as error:
            if self.find() is not None:
                if error.status == 409:
                    return False
            else:
                for kind, body in workload.before(name, template):
                    self._delete(kind, body["metadata"]["name"])
            raise api_error(error, f"create training {name}") from None
        self.uid = training["metadata"]["uid"]
        try:
            self.complete(training, template)
        except BaseException:
            self.delete()
            raise
        return True

    def complete(self, training: Mapping[str, Any], template: dict[str, Any]) -> None:
        """Create the objects that are still missing, and make the main one their owner: they are deleted with it."""
        owner = {
            "apiVersion": training["apiVersion"],
            "kind": training["kind"],
            "name": self.name,
            "uid": training["metadata"]["uid"],
        }
        for kind, body in self.workload.after(self.name, template):
            body["metadata"]["ownerReferences"] = [owner]
            self._replace(kind, body)
        for kind, body in self.workload.before(self.name, template):
            where = (kind.group, kind.version, self._namespace, kind.plural, body["metadata"]["name"])
            self._custom.patch_namespaced_custom_object(*where, {"metadata": {"ownerReferences": [owner]}})

    def delete(self) -> None:
        """Delete the training, if there is one: its pods save and end."""
        self._delete(self.workload.kind, self.name, self.uid)

    def _replace(self, kind: Kind, body: dict[str, Any]) -> None:
        """Create an object beside the main one, after deleting one that an earlier training has left."""
        name, until = body["metadata"]["name"], time.monotonic() + OVERDUE_SECONDS
        while True:
            try:
                self._create(kind, body)
                return
            except ApiException as error:
                if error.status != 409 or time.monotonic() > until:
                    raise api_error(error, f"create {body['kind']} {name}") from None
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
            created = self._core.create_namespaced_service(self._namespace, body)
            return self._core.api_client.sanitize_for_serialization(created)
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
            # In the body: where there is one, the API server reads nothing else.
            options.propagation_policy = "Foreground"
            where = (kind.group, kind.version, self._namespace, kind.plural, name)
            self._custom.delete_namespaced_custom_object(*where, body=options)
        except ApiException as error:
            # 409: another object has the name by now.
            if error.status not in (404, 409):
                raise
