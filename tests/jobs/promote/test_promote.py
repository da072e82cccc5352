"""Moving the alias in a real MLflow on SQLite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from include.errors import ConfigurationError
from jobs.promote.alias import move_alias


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def client(database: str) -> MlflowClient:
    client = MlflowClient(database, database)
    client.create_registered_model("kubectl")
    for _ in range(2):
        client.create_model_version("kubectl", source="file:///somewhere")
    return client


def champion(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias("kubectl", "champion").version)


def test_the_alias_follows_and_the_former_is_on_record(
    run_job: Callable[..., Any], client: MlflowClient, database: str
) -> None:
    move_alias(client, "kubectl", "1")
    outcome = run_job("promote", {"model": "kubectl", "version": "2"}, env={"MLFLOW_TRACKING_URI": database})
    assert champion(client) == "2"
    record = json.loads((outcome.folder / "champion.json").read_text())
    assert record == {"model": "kubectl", "version": "2", "former": "1"}


def test_forward_back_and_twice(client: MlflowClient) -> None:
    assert [move_alias(client, "kubectl", version) for version in ("1", "2", "2", "1")] == [None, "1", "2", "2"]
    assert champion(client) == "1"


def test_a_version_that_was_deleted_is_refused_and_the_alias_stays(client: MlflowClient) -> None:
    move_alias(client, "kubectl", "2")
    client.delete_model_version("kubectl", "1")
    for version in ("1", "9"):
        with pytest.raises(ConfigurationError, match=f"version {version} of kubectl takes the traffic, but"):
            move_alias(client, "kubectl", version)
    assert champion(client) == "2"
