"""The places where jobs run: one YAML a platform, chosen by `ANEMONE_PLATFORM`, equal on every Airflow component."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from include.documents import read_yaml
from include.errors import ConfigurationError, first_problem
from include.home import SERVING_PORTS, home, serving_ports
from include.model import Model
from include.notifications import Notification
from include.platforms.cluster import Cluster
from include.retention import Policy

_FOLDER = Path(__file__).parent
_FORMER_RUNNERS = {"local": "operators.LocalJobOperator", "kubernetes": "operators.DistributedJobOperator"}
"""Values of the key `runner`, which platforms had before version 0.2, and the operator that each stood for."""

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _serving_port(service: str) -> str:
    return str(serving_ports()[service])


_OF_THE_LAPTOP: dict[str, Callable[[], str]] = {
    "ANEMONE_HOME": lambda: str(home()),
    **{f"ANEMONE_{name.upper()}_PORT": partial(_serving_port, name) for name in SERVING_PORTS},
}
"""What these variables stand for, whatever the environment holds. Called only for a platform that names them, which the
laptop's alone does: elsewhere the environment may hold something else under these names. In every pod of a namespace
with a Service called `anemone`, Kubernetes sets ANEMONE_PORT to that Service's address."""


class Arrivals(Model):
    """The folder where data sets arrive, and the recipe for them.

    A file counts as arrived once its size and times have not changed for `settle_seconds`.
    """

    folder: str
    recipe: str
    settle_seconds: Annotated[float, Field(ge=0)] = 5.0
    poll_seconds: Annotated[float, Field(gt=0)] = 5.0


class Serving(Model):
    """Where releases are served.

    Attributes:
        url: the router's, for clients. `controller_url`: the canary controller's.
        token_file: with the bearer token of the controller's API; read at each use, never passed on.
        records: the controller's own folder, if it is on this machine: it says what is needed while the controller is
            stopped.
        unreachable_seconds: how long the controller may be unreachable before a task that waits for it gives up.
    """

    url: str
    controller_url: str
    token_file: str
    records: str | None = None
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    unreachable_seconds: Annotated[float, Field(gt=0)] = 600.0


class Retention(Policy):
    """What stays in the store although nothing needs it now, and when the rest is searched for.

    Attributes:
        cron: expression (UTC) of the DAG `retention`; None: only by hand.
        delete: whether its scheduled runs delete what they find; otherwise they only plan it.
    """

    cron: str | None = None
    delete: bool = False

    @property
    def policy(self) -> Policy:
        return Policy.model_validate({name: getattr(self, name) for name in Policy.model_fields})


class Platform(Model):
    """One place that can run every stage.

    Attributes:
        operator: import path of the class that runs the jobs as Airflow's tasks, a subclass of
            `operators.job.JobOperator`: Anemone's own or one of yours. Those for Kubernetes need `cluster`.
        store: root URI of the artifact store. `store_connection`: Airflow's connection (type aws) that its components
            reach a store on S3 with; None: with their own identity, as every job does.
        python: interpreter of each environment (`Spec.environment`), where jobs are processes of Airflow's machine.
        environment: variables given to every job; one that is null is left to the job.
        grace_seconds: from asking a job to stop to killing it; a cluster's size may have its own.
        notifications: the receivers of decisions and failures.
    """

    name: str
    operator: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    store: str
    store_connection: str | None = None
    python: dict[str, str] = {}
    cluster: Cluster | None = None
    environment: dict[str, str] = {}
    grace_seconds: Annotated[float, Field(ge=0)] = 30.0
    arrivals: Arrivals
    serving: Serving
    retention: Retention = Retention()
    notifications: tuple[Notification, ...] = ()
    cron: str | None = None
    gate_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0

    @field_validator("environment", mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


def current_platform() -> Platform:
    """Return the platform that `ANEMONE_PLATFORM` names; `laptop` where it is not set."""
    return load_platform(os.environ.get("ANEMONE_PLATFORM", "laptop"))


@cache
def load_platform(name: str) -> Platform:
    """Read a platform's YAML and fill in `${VARIABLE}`s from the environment.

    `${VARIABLE:-default}` stands for `default` where the variable is not set, or is empty; `${VARIABLE:-null}` for
    None. A variable's value is text, whatever it looks like, and becomes a number where the key asks for one.

    Raises:
        ConfigurationError: no such platform, a file that cannot be read as YAML, an unknown, missing or former key, or
            a variable that is not set, or not what it has to be.
    """
    path = _FOLDER / f"{name}.yaml"
    known = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigurationError(f"ANEMONE_PLATFORM is {name!r}: choose one of {', '.join(known)}")

    def variable(name: str) -> str | None:
        own = _OF_THE_LAPTOP.get(name)
        try:
            return os.environ.get(name) if own is None else own()
        except ValueError as error:
            raise ConfigurationError(f"{path.name} takes {name} from this machine's own: {error}") from None

    def value(match: re.Match[str]) -> str:
        found, default = variable(match[1]), match[2]
        if default is not None:
            return found or default
        if found is None:
            raise ConfigurationError(f"{path.name} needs the environment variable {match[1]}: set it")
        return found

    def filled(node: Any) -> Any:
        # After parsing: YAML would turn a cost centre 4711 into a number, and `on` or a date into something else.
        match node:
            case dict():
                return {key: filled(one) for key, one in node.items()}
            case list():
                return [filled(one) for one in node]
            case str():
                text = _VARIABLE.sub(value, node)
                whole = _VARIABLE.fullmatch(node)
                return None if whole is not None and whole[2] == text == "null" else text
        return node

    document = filled(read_yaml(path, f"the platform {path.name}"))
    if isinstance(document, dict) and "runner" in document:
        operator = _FORMER_RUNNERS.get(str(document["runner"]), "<module>.<class>")
        raise ConfigurationError(
            f"{path.name}: the key runner is now operator: write `operator: {operator}` in the place of "
            f"`runner: {document['runner']}`"
        )
    try:
        return Platform.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {first_problem(error)}") from None
