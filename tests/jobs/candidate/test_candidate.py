"""Looking a candidate up in a real MLflow on SQLite."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from include.artifacts.naming import digest
from include.errors import ConfigurationError, TryAgainError
from include.specs.base import Artifact
from jobs.candidate import __main__ as job
from jobs.common.registry.client import connect
from jobs.register.registry import Candidate, register
from tests.faults.scenario import scenario

NAMES = ("merged", "curated", "evaluation", "data")


def passed(when: str) -> pytest.MarkDecorator:
    then = "the job ends with 64 and says what to do"
    return scenario(given="a candidate that passed its gate", when=when, then=then)


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return connect()


@pytest.fixture
def artifacts(make_artifact: Callable[..., Artifact]) -> dict[str, Artifact]:
    return {name: make_artifact(f"{name}-1", {"file": name}) for name in NAMES}


@pytest.fixture
def registered(client: MlflowClient, artifacts: dict[str, Artifact]) -> Callable[..., str]:
    """Register one more version of `kubectl`, as `register` tags it; returns its number."""

    def make(compared: str | None = None, **tags: str | None) -> str:
        if not client.search_registered_models("name = 'kubectl'"):
            client.create_registered_model("kubectl")
        complete = {
            "anemone.recipe": "demo/tiny",
            "anemone.champion_version": compared or "none",
            **{f"anemone.input.{name}": artifact.digest for name, artifact in artifacts.items()},
            **{f"anemone.input_uri.{name}": artifact.uri for name, artifact in artifacts.items()},
            **tags,
        }
        kept = {key: value for key, value in complete.items() if value is not None}
        version = str(client.create_model_version("kubectl", source=artifacts["merged"].uri, tags=kept).version)
        client.set_registered_model_alias("kubectl", "candidate", version)
        return version

    return make


@pytest.fixture
def customize(
    client: MlflowClient, artifacts: dict[str, Artifact], make_artifact: Callable[..., Artifact]
) -> Callable[[], str]:
    """What running customize with the same data set again does: make what is gone, and register it as of now."""

    def run() -> str:
        found = {name: make_artifact(f"{name}-1", {"file": name}) for name in NAMES}
        assert found == artifacts
        recipe = {"name": "demo/tiny", "overrides": {}}
        record = {"model": "kubectl", "resolved_recipe": recipe}
        made = make_artifact("register-of-now", {"candidate.json": json.dumps(record)})
        try:
            champion = str(client.get_model_version_by_alias("kubectl", "champion").version)
        except MlflowException:
            champion = "none"
        tags = {
            "anemone.recipe": "demo/tiny",
            "anemone.champion_version": champion,
            "anemone.resolved_recipe": json.dumps({"uri": made.uri, "digest": digest(recipe)}),
            **{f"anemone.input.{name}": artifact.digest for name, artifact in found.items()},
            **{f"anemone.input_uri.{name}": artifact.uri for name, artifact in found.items()},
        }
        merged = found["merged"]
        return register(
            client, Candidate("kubectl", f"key-{champion}", "merged-1", merged.uri, merged.digest, 0, tags, {}, [])
        )

    return run


@pytest.fixture
def look_up(run_here: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Run the job; returns its record."""

    def do(version: str | None = None) -> dict[str, Any]:
        folder = run_here("candidate", {"model": "kubectl", "version": version})
        return json.loads((folder / "candidate.json").read_text(encoding="utf-8"))

    return do


def test_the_newest_candidate_with_what_it_was_made_from(
    look_up: Callable[..., Any], registered: Callable[..., str], artifacts: dict[str, Artifact]
) -> None:
    registered()
    assert registered() == "2"
    assert look_up() == {
        "model": "kubectl",
        "version": "2",
        "champion_version": None,
        "gates": {},
        "recipe": "demo/tiny",
        "resolved_recipe": None,
        "inputs": {name: {"uri": found.uri, "digest": found.digest} for name, found in artifacts.items()},
    }


def test_the_recipe_with_which_it_was_registered(
    run_here: Callable[..., Path],
    look_up: Callable[..., Any],
    registered: Callable[..., str],
    make_artifact: Callable[..., Artifact],
) -> None:
    """That of its last registration, or of the one that the release was started by."""
    recipes = [{"name": "demo/tiny", "overrides": {"canary.steps": [share]}} for share in (0.1, 0.2)]
    registrations = [
        make_artifact(
            f"register-{number}",
            {"candidate.json": json.dumps({"model": "kubectl", "version": "1", "resolved_recipe": recipe})},
        )
        for number, recipe in enumerate(recipes)
    ]
    address = {"uri": registrations[1].uri, "digest": digest(recipes[1])}
    registered(**{"anemone.resolved_recipe": json.dumps(address)})
    assert look_up()["resolved_recipe"] == recipes[1]
    named = run_here("candidate", {"model": "kubectl", "version": "1"}, {"registration": registrations[0]})
    record = json.loads((named / "candidate.json").read_text())
    assert (record["resolved_recipe"], record["recipe"]) == (recipes[0], "demo/tiny")
    registered()
    with pytest.raises(ConfigurationError, match="is of version 1 of kubectl, not of version 2 of kubectl"):
        run_here("candidate", {"model": "kubectl", "version": "2"}, {"registration": registrations[0]})


@pytest.mark.remedy("run customize with its data set again, which registers it anew and repeats nothing")
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3:", "which is no address"),
        ('{"uri": "URI", "digest": "0"}', "which now holds another one"),
        ('{"uri": "URI-gone", "digest": "0"}', "which cannot be read .*does not exist"),
    ],
)
def test_a_recipe_that_is_not_where_it_was_registered_is_refused(
    look_up: Callable[..., Any],
    registered: Callable[..., str],
    make_artifact: Callable[..., Artifact],
    customize: Callable[[], str],
    address: str,
    says: str,
) -> None:
    record = {"model": "kubectl", "version": "1", "resolved_recipe": {"name": "demo/tiny"}}
    uri = make_artifact("register-1", {"candidate.json": json.dumps(record)}).uri
    registered(**{"anemone.resolved_recipe": address.replace("URI", uri)})
    with pytest.raises(ConfigurationError, match=f"with its recipe at .*{says}.*run customize with its data"):
        look_up()
    assert customize() == look_up()["version"]


def test_the_limits_that_it_kept_whichever_version_stored_them(
    look_up: Callable[..., Any], registered: Callable[..., str]
) -> None:
    registered(**{"anemone.gates": '{"distillation": {"min_rows": 5}}'})
    registered(**{"anemone.gate": '{"min_rows": 3}'})
    assert look_up("1")["gates"] == {"distillation": {"min_rows": 5}}
    assert look_up("2")["gates"] == {"evaluation": {"min_rows": 3}}


def test_an_older_version_by_its_number(look_up: Callable[..., Any], registered: Callable[..., str]) -> None:
    registered()
    registered()
    assert look_up("1")["version"] == "1"


def test_compared_with_the_champion_of_now(
    look_up: Callable[..., Any], registered: Callable[..., str], client: MlflowClient
) -> None:
    client.set_registered_model_alias("kubectl", "champion", registered())
    registered(compared="1")
    assert look_up()["champion_version"] == "1"


def test_the_champion_itself_can_be_released_again(
    look_up: Callable[..., Any], registered: Callable[..., str], client: MlflowClient
) -> None:
    client.set_registered_model_alias("kubectl", "champion", registered())
    assert look_up("1")["champion_version"] is None


@pytest.mark.remedy("run customize again, which evaluates it anew")
@pytest.mark.parametrize(
    ("compared", "champion", "says"),
    [
        ("1", "2", "compared with champion 1, the champion is 2 by now: run customize again"),
        pytest.param(
            None,
            "2",
            "compared with no champion, the champion is 2 by now: run customize again",
            marks=passed("another champion is live by now"),
        ),
        ("1", None, "compared with champion 1, there is none by now"),
    ],
)
def test_a_comparison_that_is_out_of_date_is_refused(
    look_up: Callable[..., Any],
    registered: Callable[..., str],
    client: MlflowClient,
    customize: Callable[[], str],
    compared: str | None,
    champion: str | None,
    says: str,
    reads: Callable[[object], None],
) -> None:
    registered()
    registered()
    if champion:
        client.set_registered_model_alias("kubectl", "champion", champion)
    registered(compared=compared)
    with pytest.raises(ConfigurationError, match=says) as refused:
        look_up()
    reads(refused.value)
    assert customize() == look_up()["version"]


@pytest.mark.remedy("run customize with its data set again, which adds what is missing and repeats nothing")
@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("anemone.input_uri.merged", "does not say where its merged is"),
        ("anemone.champion_version", "does not say where its comparison is"),
    ],
)
def test_a_version_that_an_earlier_anemone_registered(
    look_up: Callable[..., Any], registered: Callable[..., str], customize: Callable[[], str], tag: str, says: str
) -> None:
    # Of the same merged model, evaluation and champion.
    version = registered(**{tag: None, "anemone.key": "key-none"})
    with pytest.raises(ConfigurationError, match=f"{says}.*run customize with its data set again"):
        look_up()
    assert customize() == look_up()["version"] == version


def by_hand(client: MlflowClient) -> None:
    """Put the alias on a version that somebody made in MLflow."""
    version = client.create_model_version("kubectl", source="s3://elsewhere/model")
    client.set_registered_model_alias("kubectl", "candidate", str(version.version))


@pytest.mark.remedy("name a version that customize registered, or run customize")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            by_hand,
            "registered by an earlier Anemone, or by hand",
            marks=passed("somebody puts the alias candidate on a version of their own"),
        ),
        pytest.param(
            lambda client: client.rename_registered_model("kubectl", "kubectl-old"),
            "MLflow knows no model 'kubectl'",
            marks=passed("the model is renamed in MLflow"),
        ),
        pytest.param(
            lambda client: client.delete_registered_model("kubectl"),
            "MLflow knows no model 'kubectl'",
            marks=passed("the model is deleted in MLflow"),
        ),
    ],
)
def test_a_registry_that_somebody_changed(
    look_up: Callable[..., Any],
    registered: Callable[..., str],
    client: MlflowClient,
    customize: Callable[[], str],
    reads: Callable[[object], None],
    change: Callable[[MlflowClient], object],
    says: str,
) -> None:
    registered()
    change(client)
    with pytest.raises(ConfigurationError, match=says) as refused:
        look_up()
    reads(refused.value)
    assert customize() == look_up()["version"]


@pytest.mark.remedy("bring it back, or run customize again")
@pytest.mark.parametrize(
    ("gone", "words"),
    [
        pytest.param(True, "is gone: bring it back", marks=passed("its merged model is deleted")),
        (False, "now holds other bytes"),
    ],
)
def test_what_it_was_made_from_is_not_there_any_more(
    look_up: Callable[..., Any],
    registered: Callable[..., str],
    artifacts: dict[str, Artifact],
    customize: Callable[[], str],
    reads: Callable[[object], None],
    gone: bool,
    words: str,
) -> None:
    registered(**({} if gone else {"anemone.input.merged": "0" * 64}))
    if gone:
        shutil.rmtree(artifacts["merged"].uri.removeprefix("file://"))
    with pytest.raises(ConfigurationError, match=f"with merged at .*{words}.*run customize again") as refused:
        look_up()
    reads(refused.value)
    assert customize() == look_up()["version"]


@pytest.mark.remedy("see that it runs and can write, then clear this task: repeating it is safe")
def test_a_registry_that_another_holds_is_worth_another_try(
    look_up: Callable[..., Any], registered: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registered()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=0")
    held = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)

    def connected() -> MlflowClient:
        client = connect()
        held.execute("BEGIN EXCLUSIVE")
        return client

    monkeypatch.setattr(job, "connect", connected)
    try:
        with pytest.raises(
            TryAgainError, match="up: .*database is locked.* then clear this task: repeating it is safe"
        ):
            look_up()
    finally:
        held.close()
    monkeypatch.setattr(job, "connect", connect)
    assert look_up()["version"] == "1"


@pytest.mark.remedy("run customize, or name a version")
def test_nothing_registered_and_no_such_version(
    look_up: Callable[..., Any], registered: Callable[..., str], client: MlflowClient, customize: Callable[[], str]
) -> None:
    with pytest.raises(ConfigurationError, match="MLflow knows no model 'kubectl'"):
        look_up()
    registered()
    with pytest.raises(ConfigurationError, match="MLflow knows no version 7 of kubectl"):
        look_up("7")
    client.delete_registered_model_alias("kubectl", "candidate")
    with pytest.raises(ConfigurationError, match="no version under MLflow's alias candidate: run customize, or name"):
        look_up()
    assert look_up("1")["version"] == "1"
    assert customize() == look_up()["version"]
