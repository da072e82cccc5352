"""Looking the champion up in a real MLflow on SQLite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from include.errors import ConfigurationError
from include.specs.base import Artifact
from jobs.champion.lookup import find_champion
from jobs.common.registry.client import connect
from jobs.common.registry.tags import ARTIFACT_TAG, DIGEST_TAG
from tests.faults.scenario import scenario


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return connect()


@pytest.fixture
def look_up(run_here: Callable[..., Path]) -> Callable[[], Path]:
    """Run the job; returns the folder of its files."""
    return lambda: run_here("champion", {"model": "kubectl"})


def crown(client: MlflowClient, artifact: Artifact, digest: str | None = None) -> str:
    client.create_registered_model("kubectl")
    tags = {ARTIFACT_TAG: artifact.uri, DIGEST_TAG: digest or artifact.digest}
    version = str(client.create_model_version("kubectl", source=artifact.uri, tags=tags).version)
    client.set_registered_model_alias("kubectl", "champion", version)
    return version


def test_a_database_that_does_not_exist_yet_has_no_champion(
    look_up: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    record = json.loads((look_up() / "champion.json").read_text())
    assert record == {"model": "kubectl", "version": None, "artifact": None}


def test_a_model_without_the_alias_has_no_champion(client: MlflowClient) -> None:
    client.create_registered_model("kubectl")
    assert find_champion(client, "kubectl")["version"] is None


def test_the_champion_s_artifact_is_found(client: MlflowClient, make_artifact: Callable[..., Artifact]) -> None:
    merged = make_artifact("merge-1", {"model/config.json": "{}"})
    version = crown(client, merged)
    assert find_champion(client, "kubectl") == {
        "model": "kubectl",
        "version": version,
        "artifact": {"uri": merged.uri, "digest": merged.digest},
    }


def looked_for(when: str) -> pytest.MarkDecorator:
    then = "the job ends with 64 and says what to do"
    return scenario(given="a run that looks for its champion", when=when, then=then)


@looked_for("somebody puts the alias champion on a version of their own")
def test_a_version_that_nobody_registered_here_is_refused(
    client: MlflowClient, reads: Callable[[object], None]
) -> None:
    client.create_registered_model("kubectl")
    version = client.create_model_version("kubectl", source="file:///somewhere").version
    client.set_registered_model_alias("kubectl", "champion", str(version))
    says = r"version 1, lacks the tags anemone\.artifact and anemone\.digest: move the alias champion"
    with pytest.raises(ConfigurationError, match=says) as refused:
        find_champion(client, "kubectl")
    reads(refused.value)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        pytest.param(True, "is gone: bring it back", marks=looked_for("the champion's model is deleted")),
        (False, "now holds other bytes"),
    ],
)
def test_a_champion_whose_bytes_are_not_there_is_one_clear_error(
    client: MlflowClient,
    make_artifact: Callable[..., Artifact],
    look_up: Callable[[], Path],
    reads: Callable[[object], None],
    gone: bool,
    words: str,
) -> None:
    merged = make_artifact("merge-1", {"model/config.json": "{}"})
    crown(client, merged, digest=None if gone else "0" * 64)
    if gone:
        shutil.rmtree(merged.uri.removeprefix("file://"))
    with pytest.raises(ConfigurationError, match=f"version 1.*{words}.*move the alias") as refused:
        look_up()
    reads(refused.value)


def test_no_address_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI is not set"):
        connect()


def test_an_address_that_mlflow_cannot_use_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(ConfigurationError, match="does not answer"):
        connect()
