"""Which rights a request to the Kubernetes API needs, and whether a role grants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

import yaml

_VERBS = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Right(NamedTuple):
    """One verb on one resource, with its subresource; in a namespace."""

    verb: str
    group: str
    resource: str


def needed(method: str, path: list[str], query: str) -> Right:
    """As the API server's request info resolver tells it.

    Args:
        path: in parts: api/v1/namespaces/NAMESPACE/RESOURCE[/NAME[/SUBRESOURCE]], or apis/GROUP/VERSION/….
    """
    group, rest = ("", path[2:]) if path[0] == "api" else (path[1], path[3:])
    if rest[0] != "namespaces" or len(rest) < 3:
        raise AssertionError(f"{'/'.join(path)} is not within a namespace, where a Role holds")
    resource, *name = rest[2:]
    verb = _VERBS[method]
    if not name and method == "GET":
        verb = "watch" if parse_qs(query).get("watch", ["false"])[0].lower() in ("true", "1") else "list"
    if not name and method == "DELETE":
        verb = "deletecollection"
    return Right(verb, group, "/".join([resource, *name[1:]]))


def granted(path: Path, role: str) -> set[Right]:
    """All that a Role in a file of YAML documents grants."""
    (found,) = [
        document
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "Role" and document["metadata"]["name"] == role
    ]
    return set(_rights(found["rules"]))


def _rights(rules: list[dict[str, list[str]]]) -> Iterator[Right]:
    for rule in rules:
        assert "resourceNames" not in rule and "*" not in str(rule)
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield Right(verb, group, resource)
