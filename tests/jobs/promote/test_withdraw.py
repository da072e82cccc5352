"""Taking the alias away in a real MLflow on SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.common.registry.aliases import champion_version
from jobs.promote.withdraw import main


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return MlflowClient(database, database)


def test_a_withdrawn_champion_stays_registered(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.create_registered_model("kubectl")
    client.create_model_version("kubectl", source="file:///somewhere")
    client.set_registered_model_alias("kubectl", "champion", "1")
    assert main(["kubectl"]) == 0
    assert champion_version(client, "kubectl") is None
    assert client.get_model_version("kubectl", "1")
    assert main(["kubectl"]) == main(["unknown"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kubectl: version 1 was the champion",
        "kubectl: there was no champion",
        "unknown: there was no champion",
    ]


def test_without_a_registry_it_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["kubectl"]) == 64
    assert capsys.readouterr().err.startswith("error: MLFLOW_TRACKING_URI is not set")
