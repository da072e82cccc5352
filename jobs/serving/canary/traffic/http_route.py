"""The weights of one named rule of a Gateway API HTTPRoute, by the Kubernetes API."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

from include.errors import ConfigurationError
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.log import log

GROUP = "gateway.networking.k8s.io/v1"
TOTAL_WEIGHT = 1000
"""The weights of both backends together: steps of a thousandth of the traffic."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_SECONDS = 10.0
_TRIES = 5


class KubernetesConfig(NamedTuple):
    """The address of a Kubernetes API, and the credentials for it.

    Attributes:
        token_file: read for each request, since the kubelet replaces the token.
        certificate: of the authority that signed the API's own; None where the API has none (http).
        namespace: of objects that are named without one.
    """

    url: str
    token_file: Path
    certificate: Path | None
    namespace: str

    @classmethod
    def in_cluster(cls) -> Self:
        """Return the configuration of the cluster that this pod runs in.

        Raises:
            ConfigurationError: this is not a pod, or it has no service account's token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if host is None or not (_ACCOUNT / "token").is_file():
            raise ConfigurationError(
                f"no Kubernetes API can be reached from here ({_ACCOUNT}/token, KUBERNETES_SERVICE_HOST): run the "
                "controller in a pod with automountServiceAccountToken, or without --gateway-route"
            )
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        return cls(url, _ACCOUNT / "token", _ACCOUNT / "ca.crt", (_ACCOUNT / "namespace").read_text().strip())


class HTTPRoute:
    """The weights of two backends in one named rule. Use as an asynchronous context manager.

    Nothing else of the route is ever written: two numbers are patched in place, on condition that the rule and both
    backends are still where they were read, and that the route has not changed since.

    Args:
        route: its name, or namespace/name. `rule`: its name within the route.
        stable, canary: names of the Services.
    """

    def __init__(self, api: KubernetesConfig, route: str, rule: str, stable: str, canary: str) -> None:
        namespace, _, name = route.rpartition("/")
        namespace = namespace or api.namespace
        self._api = api
        self._url = f"{api.url}/apis/{GROUP}/namespaces/{namespace}/httproutes/{name}"
        self._what = f"HTTPRoute {namespace}/{name}, rule {rule}"
        self._rule = rule
        self._backends = (stable, canary)

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=self._api.certificate) if self._api.certificate else False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def weight(self) -> float:
        """Return the canary's share of the traffic. Raises RouterError where the route cannot be read."""
        stable, canary = (ref.get("weight", 1) for _, ref in self._find(await self._call("GET"))[1])
        return canary / (stable + canary) if stable + canary else 0.0

    async def set(self, weight: float) -> None:
        """Set the canary's share of the traffic.

        Raises:
            RouterError: the API does not answer or refuses, or the route does not have the rule and both backends.
            ConflictError: another client changes the route all the time; the message has the API's last error.
        """
        canary = round(TOTAL_WEIGHT * weight)
        wanted = (TOTAL_WEIGHT - canary, canary)
        refused, refusal = None, ""
        for _ in range(_TRIES):
            route = await self._call("GET")
            version = route["metadata"]["resourceVersion"]
            if version == refused:
                raise RouterError(f"{refusal}; nobody else has changed it meanwhile")
            at, found = self._find(route)
            if tuple(ref.get("weight", 1) for _, ref in found) == wanted:
                return
            rule = f"/spec/rules/{at}"
            changes = [
                {"op": "test", "path": f"{rule}/name", "value": self._rule},
                # The API server applies a patch with a resourceVersion only to that version.
                {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            ]
            for (index, ref), number in zip(found, wanted, strict=True):
                backend = f"{rule}/backendRefs/{index}"
                changes.append({"op": "test", "path": f"{backend}/name", "value": ref["name"]})
                changes.append({"op": "add", "path": f"{backend}/weight", "value": number})
            try:
                await self._call("PATCH", changes)
            except ConflictError as error:
                refused, refusal = version, str(error)
                continue
            log("gateway", route=self._what, stable=wanted[0], canary=wanted[1])
            return
        raise ConflictError(
            f"{self._what} is changed by somebody else all the time: see who does, and stop it ({refusal})"
        )

    def _find(self, route: dict[str, Any]) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
        """Return the index of the rule, and the index and reference of each backend in it."""
        rules = [(at, rule) for at, rule in enumerate(route["spec"].get("rules", ())) if rule.get("name") == self._rule]
        if len(rules) != 1:
            raise RouterError(f"{self._what}: there are {len(rules)} rules of that name, there has to be one: add it")
        at, rule = rules[0]
        found = []
        for name in self._backends:
            refs = [
                (index, ref)
                for index, ref in enumerate(rule.get("backendRefs", ()))
                if ref["name"] == name and ref.get("kind", "Service") == "Service"
            ]
            if len(refs) != 1:
                raise RouterError(f"{self._what}: it has to name the Service {name} once among its backendRefs")
            found += refs
        if len(rule["backendRefs"]) != len(found):
            raise RouterError(
                f"{self._what}: besides {' and '.join(self._backends)} it has other backends: remove them"
            )
        return at, found

    async def _call(self, method: str, body: Any = None) -> dict[str, Any]:
        try:
            token = await asyncio.to_thread(self._api.token_file.read_text)
            headers = {"Authorization": f"Bearer {token.strip()}", "Accept": "application/json"}
            if body is not None:
                headers["Content-Type"] = "application/json-patch+json"
            async with self._session.request(method, self._url, json=body, headers=headers) as response:
                document = await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise RouterError(
                f"the Kubernetes API at {self._api.url} cannot be reached for {self._what} "
                f"({type(error).__name__}: {error})"
            ) from None
        if response.status < 400:
            return document
        message = f"the Kubernetes API answered {method} of {self._what} with {response.status}: "
        causes = (document.get("details") or {}).get("causes") or ()
        message += "; ".join(map(str, [document.get("message"), *(cause.get("message") for cause in causes)]))
        # A failed `test` is answered like a value that is not allowed.
        raise (ConflictError if response.status in (409, 422) else RouterError)(message)
