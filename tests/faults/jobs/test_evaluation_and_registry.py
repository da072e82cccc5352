"""Evaluation, its gate and the registry, with figures and databases that are not what they should be."""

# ruff: noqa: F811 (pytest's fixtures, imported by name)
from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from include.artifacts.store import Store
from include.specs.base import Artifact
from tests.faults.jobs.gate import Gate
from tests.faults.jobs.registry_server import MlflowServer
from tests.faults.scenario import scenario
from tests.include.gates.test_evaluation import evaluation, table
from tests.jobs.conftest import OFFLINE, Outcome
from tests.jobs.evaluate.conftest import KNOWN, folders  # noqa: F401
from tests.jobs.models import conversation, jsonl
from tests.jobs.register.test_register import CONFIG, commit_stage, stages  # noqa: F401

Scores = list[dict[str, Any]]

# ---------------------------------------------------------------------------------------------------- the gate


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with Gate(tmp_path_factory.mktemp("airflow")) as started:
        yield started


def with_loss(value: float | None, rows: int = 1000, every: bool = False) -> tuple[dict, Scores]:
    results, scores = evaluation(rows)
    for scored in scores if every else scores[-1:]:
        scored["scores"]["tuned"]["loss"] = value
    return results, scores


def without_baseline() -> tuple[dict, Scores]:
    _, scores = evaluation()
    for scored in scores:
        del scored["scores"]["base_zero_shot"], scored["scores"]["base_few_shot"]
    return table(scores), scores


def one_metric_short() -> tuple[dict, Scores]:
    results, scores = evaluation()
    del scores[7]["scores"]["tuned"]["exact_match"]
    return results, scores


def tie_in_other_rows() -> tuple[dict, Scores]:
    _, scores = evaluation(champion=920)
    for number in range(80):
        scores[number]["scores"]["champion"]["exact_match"] = 0
        scores[920 + number]["scores"]["champion"]["exact_match"] = 1
    return table(scores), scores


def champion_on_other_rows() -> tuple[dict, Scores]:
    results, scores = evaluation(champion=900)
    for scored in scores[:500]:
        del scored["scores"]["champion"]
    return results, scores


AN_EVALUATION = "an evaluation of 1,000 held-out rows, right in 92%"
RED = "the gate ends red with the numbers, and nothing is registered"


@pytest.mark.parametrize(
    ("made", "limits", "says"),
    [
        pytest.param(
            lambda: (table([]) | {"rows": 0}, []),
            {},
            "fail: no held-out row was scored",
            marks=scenario(given="an evaluation", when="it holds no row", then=RED),
            id="no-row",
        ),
        pytest.param(
            lambda: evaluation(1, tuned=1, base_few_shot=0),
            {},
            "inconclusive: 1 held-out rows decide nothing: 499 more are needed",
            marks=scenario(
                given="an evaluation",
                when="it holds one row, answered rightly",
                then="the gate is inconclusive and says how many rows are missing",
            ),
            id="one-row",
        ),
        *(
            pytest.param(
                lambda value=value, every=every: with_loss(value, every=every),
                {},
                says,
                marks=scenario(given=AN_EVALUATION, when=when, then=RED),
                id=name,
            )
            for name, value, every, when, says in [
                (
                    "nan",
                    math.nan,
                    False,
                    "one loss is NaN",
                    "the loss of tuned on row row-999 (scores.jsonl line 1000)",
                ),
                ("inf", math.inf, False, "one loss is infinite", "the loss of tuned on row row-999"),
                ("huge", 1e308, True, "the losses are finite and their sum is not", "no model has such a loss"),
                ("negative", -0.5, False, "one loss is negative", "no model has such a loss"),
                ("none", None, False, "one loss is missing", "the loss of tuned on row row-999"),
            ]
        ),
        pytest.param(
            one_metric_short,
            {},
            "the exact_match of tuned on row row-7 (scores.jsonl line 8) is missing",
            marks=scenario(given=AN_EVALUATION, when="one row has no exact match", then=RED),
            id="metric",
        ),
        pytest.param(
            without_baseline,
            {},
            "no figures for base_zero_shot, base_few_shot",
            marks=scenario(given=AN_EVALUATION, when="the base model was not asked", then=RED),
            id="baseline",
        ),
        pytest.param(
            evaluation,
            {"min_accuracy": 0.9},
            "gates.evaluation.min_accuracy is not a limit",
            marks=scenario(given=AN_EVALUATION, when="the recipe limits a metric that does not exist", then=RED),
            id="unknown-limit",
        ),
        pytest.param(
            lambda: ([1, 2], [[3]]),
            {},
            "do not have the shape of an evaluation",
            marks=scenario(given="an evaluation", when="its files hold lists in place of objects", then=RED),
            id="shape",
        ),
        pytest.param(
            tie_in_other_rows,
            {},
            "inconclusive: exact match .92 against the champion's .92, difference .00",
            marks=scenario(
                given=AN_EVALUATION,
                when="the champion is right as often, in other rows",
                then="the gate is inconclusive and says how many rows are missing",
            ),
            id="tie-apart",
        ),
        pytest.param(
            lambda: evaluation(champion=960),
            {},
            "fail: exact match .92 against the champion's .96",
            marks=scenario(given=AN_EVALUATION, when="the champion is right in 96%", then=RED),
            id="worse",
        ),
        pytest.param(
            champion_on_other_rows,
            {},
            "does not hold the models of the table",
            marks=scenario(given=AN_EVALUATION, when="the champion was asked other rows", then=RED),
            id="other-rows",
        ),
    ],
)
def test_what_was_not_measured_never_passes(
    make_artifact: Callable[..., Artifact],
    gate: Gate,
    reads: Callable[[str], None],
    made: Callable[[], tuple[Any, Any]],
    limits: dict[str, Any],
    says: str,
) -> None:
    results, scores = made()
    files = {"results.json": json.dumps(results), "scores.jsonl": "".join(json.dumps(one) + "\n" for one in scores)}
    verdict, sentence = gate.judge(make_artifact("evaluate-1", files).uri, **limits)
    assert verdict == "red", sentence
    assert says in sentence
    reads(sentence.partition(". Compare")[0])


@scenario(
    given=AN_EVALUATION,
    when="the champion is right in the very same rows",
    then="the gate passes: as good as the champion is good enough",
)
def test_a_tie_in_the_same_rows_passes(make_artifact: Callable[..., Artifact], gate: Gate) -> None:
    results, scores = evaluation(champion=920)
    files = {"results.json": json.dumps(results), "scores.jsonl": jsonl(scores)}
    assert gate.judge(make_artifact("evaluate-1", files).uri) == ("pass", "")


@scenario(given=AN_EVALUATION, when="one byte of its scores is flipped on the disk", then=RED)
def test_a_damaged_evaluation_is_not_judged(
    make_artifact: Callable[..., Artifact], store: Store, gate: Gate, reads: Callable[[str], None], tmp_path: Path
) -> None:
    results, scores = evaluation()
    artifact = make_artifact("evaluate-1", {"results.json": json.dumps(results), "scores.jsonl": jsonl(scores)})
    (path,) = tmp_path.rglob("scores.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"exact_match": 0', b'"exact_match": 1', 1))
    verdict, sentence = gate.judge(artifact.uri)
    assert verdict == "red"
    assert "scores.jsonl is missing or was altered after its commit" in sentence
    reads(sentence.replace(f"{tmp_path}/", ""))


# ----------------------------------------------------------------------------------------------- the evaluation


@pytest.fixture
def evaluate(
    run_job: Callable[..., Outcome],
    make_artifact: Callable[..., Artifact],
    folders: dict[str, Path],
    chat_template: str,
) -> Callable[..., Outcome]:
    """Evaluate the model in a folder, the one that knows all answers by default, on held-out rows."""
    base = make_artifact("base-1", folder=folders["random"])

    def run(heldout: list[dict[str, Any]], model: Path | None = None, expect: int = 0, **inputs: Artifact) -> Outcome:
        number = len(list(Path(store_of(base)).glob("data-*")))
        tuned = make_artifact(f"tuned-{number}", folder=model or folders["trained"])
        data = make_artifact(f"data-{number}", {"heldout.jsonl": jsonl(heldout), "train.jsonl": jsonl(KNOWN[:3])})
        settings = {"chat_template": chat_template, "max_tokens": 80, "max_new_tokens": 24, "few_shot": 1}
        return run_job("evaluate", settings, {"base": base, "tuned": tuned, "data": data, **inputs}, expect=expect)

    return run


def store_of(artifact: Artifact) -> str:
    return artifact.uri.removeprefix("file://").rpartition("/")[0]


def scores_of(outcome: Outcome) -> Scores:
    assert outcome.folder is not None
    return [json.loads(line) for line in (outcome.folder / "scores.jsonl").read_text().splitlines()]


@scenario(given="a held-out set", when="it is empty", then="the evaluation ends with 65 before a model is loaded")
def test_no_held_out_row_is_an_error(evaluate: Callable[..., Outcome], told: Callable[[Outcome], str]) -> None:
    assert "heldout.jsonl is empty: give the recipe a held-out set" in told(evaluate([], expect=65))


@scenario(
    given="a held-out set",
    when="the right answer of a row is blank",
    then="the evaluation ends with 65: silence must not count as right",
)
def test_a_blank_reference_is_an_error(evaluate: Callable[..., Outcome], told: Callable[[Outcome], str]) -> None:
    sentence = told(evaluate([*KNOWN, conversation("blank", "say nothing", "  \n ")], expect=65))
    assert "heldout.jsonl line 7" in sentence
    assert "blank" in sentence


@scenario(
    given="a tuned model with one NaN among its weights",
    when="it is evaluated",
    then="the evaluation is kept, with null in place of every figure, and the gate ends red",
)
def test_a_model_of_nan_never_passes(
    evaluate: Callable[..., Outcome],
    gate: Gate,
    reads: Callable[[str], None],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folders["trained"], tmp_path / "broken")
    weights = load_file(broken / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = math.nan
    save_file(weights, broken / "model" / "model.safetensors", metadata={"format": "pt"})
    outcome = evaluate(KNOWN, broken)
    assert json.loads((outcome.folder / "results.json").read_text())["models"]["tuned"]["heldout_loss"] is None
    verdict, sentence = gate.judge(outcome.uri, min_rows=1)
    assert verdict == "red"
    assert "the loss of tuned on row known-0 (scores.jsonl line 1) is missing" in sentence
    reads(sentence.partition(". Compare")[0])


@scenario(
    given="a tuned model that answers everything with blanks",
    when="it is evaluated",
    then="every answer counts as empty and as wrong, and the gate ends red",
)
def test_blanks_are_no_answer(
    evaluate: Callable[..., Outcome],
    gate: Gate,
    reads: Callable[[str], None],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    outcome = evaluate(KNOWN, blank_model(folders["trained"], tmp_path / "blank"))
    figures = json.loads((outcome.folder / "results.json").read_text())["models"]["tuned"]
    assert (figures["empty_answers"], figures["exact_match"]) == (len(KNOWN), 0)
    verdict, sentence = gate.judge(outcome.uri, min_rows=1)
    assert verdict == "red"
    assert "exact match .00 is below .80 (6 held-out rows)" in sentence
    reads(sentence.partition(". Compare")[0])


def blank_model(source: Path, target: Path) -> Path:
    """A copy of a model folder that gives every token the same meaning, and a blank as the next one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(target / "model")
    blank = AutoTokenizer.from_pretrained(target / "model").convert_tokens_to_ids("Ġ")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        meaning = model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        model.lm_head.weight[blank] = meaning
    model.save_pretrained(target / "model")
    return target


@scenario(
    given="a champion that was evaluated once",
    when="the held-out set is another one by now",
    then="it is asked the new rows: no score of the old ones is taken over",
)
def test_the_champion_is_asked_the_same_rows(
    evaluate: Callable[..., Outcome],
    make_artifact: Callable[..., Artifact],
    folders: dict[str, Path],
) -> None:
    model = make_artifact("merge-champion", folder=folders["random"])
    record = {"model": "kubectl", "version": "1", "artifact": model.model_dump()}
    champion = make_artifact("champion-1", {"champion.json": json.dumps(record)})
    before, after = (evaluate(rows, champion=champion) for rows in (KNOWN[:3], KNOWN[2:]))
    assert before.uri != after.uri
    assert [scored["id"] for scored in scores_of(after)] == [known["id"] for known in KNOWN[2:]]
    assert all(set(scored["scores"]) >= {"tuned", "champion"} for scored in scores_of(after))


# ------------------------------------------------------------------------------------------------- the registry


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(params=["file", "server"])
def registry(request: pytest.FixtureRequest) -> str:
    """MLflow's address: a SQLite file, and a server."""
    if request.param == "file":
        return request.getfixturevalue("database")
    return request.getfixturevalue("server").url


@pytest.fixture
def register(
    run_job: Callable[..., Outcome],
    stages: dict[str, Artifact],
) -> Callable[..., Outcome]:
    """Register the candidate of one run as version of `kubectl`, or of another name."""

    def run(registry: str, model: str = "kubectl", expect: int = 0, **env: str) -> Outcome:
        config = {**CONFIG, "model": model}
        return run_job("register", config, stages, expect=expect, env={"MLFLOW_TRACKING_URI": registry, **env})

    return run


def state(registry: str, model: str) -> tuple[list[Any], list[Any]]:
    """The versions of a model, and its runs."""
    client = MlflowClient(registry, registry)
    experiment = client.get_experiment_by_name(model)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return list(client.search_model_versions(f"name = '{model}'")), list(runs)


@scenario(
    given="one candidate",
    when="three runs register it at the same moment, and again on a 75, as Airflow does",
    then="all of them end well, with one version, one run and the alias candidate on it",
)
def test_runs_that_register_at_once_agree(
    registry: str,
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    store: Store,
) -> None:
    specs = [write_spec("register", {**CONFIG, "model": "at-once", "run_id": f"run-{turn}"}, stages) for turn in "abc"]

    def start(uri: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **OFFLINE, "MLFLOW_TRACKING_URI": registry}
        command = [sys.executable, "-m", "jobs.register", "--spec", uri]
        for _ in range(3):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode != 75:
                break
        return done

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(start, [uri for uri, _ in specs]))
    assert [done.returncode for done in ended] == [0, 0, 0], "\n".join(done.stderr for done in ended)
    said = {store.read_json(name, "candidate.json")["version"] for _, name in specs}
    versions, runs = state(registry, "at-once")
    assert [str(version.version) for version in versions] == list(said)
    assert len(runs) == 1
    alias = MlflowClient(registry, registry).get_model_version_by_alias("at-once", "candidate")
    assert {str(alias.version)} == said


KILLS = 12


@scenario(
    given="a registration in its midst",
    when=f"it is SIGKILLed at {KILLS} random moments, each followed by another try",
    then="one version and one run of each; no half registration ever has the alias candidate",
)
def test_a_killed_registration_is_completed(
    registry: str,
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    started = time.monotonic()
    assert register_in_a_process(write_spec, stages, "undisturbed") == 0
    usual = time.monotonic() - started
    moments = random.Random(20)
    interrupted = 0
    for number in range(KILLS):
        model = f"killed-{number}"
        code = register_in_a_process(write_spec, stages, model, kill_after=moments.uniform(0.05, usual))
        interrupted += code == -signal.SIGKILL
        require_whole(registry, model)
        assert register_in_a_process(write_spec, stages, model) == 0
        versions, runs = state(registry, model)
        assert (len(versions), len(runs)) == (1, 1)
        assert require_whole(registry, model)
    assert interrupted >= KILLS / 3


def register_in_a_process(
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    model: str,
    kill_after: float | None = None,
) -> int:
    """Run the job in a fork of this process, which has paid for the imports; returns its exit code."""
    from jobs.common.runtime import execute, load_spec
    from jobs.register.__main__ import run

    uri, _ = write_spec("register", {**CONFIG, "model": model, "run_id": f"{model}-{kill_after}"}, stages)
    spec = load_spec("register", uri)
    child = multiprocessing.get_context("fork").Process(target=execute, args=(spec, run), daemon=True)
    child.start()
    child.join(kill_after if kill_after is not None else 120)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def require_whole(registry: str, model: str) -> bool:
    """Whether somebody has the alias; asserts that it is a whole registration."""
    client = MlflowClient(registry, registry)
    versions, _ = state(registry, model)
    alias = next(
        (found.aliases.get("candidate") for found in client.search_registered_models(f"name = '{model}'")), None
    )
    holders = [version for version in versions if str(version.version) == str(alias)]
    for version in holders:
        tags = client.get_model_version(model, version.version).tags
        assert {
            "anemone.champion_version",
            "anemone.recipe",
            "anemone.input_uri.merged",
            "anemone.digest",
        } <= tags.keys()
        found = client.get_run(version.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.params["finetune.lora.dim"] == "16"
        assert len(client.get_metric_history(version.run_id, "train.loss")) == 1500
    return bool(holders)


@scenario(
    given="a candidate whose artifacts lie in a local store",
    when="MLflow is a server, which refuses file paths",
    then="it is registered, and the release finds everything by the version's tags",
)
def test_a_server_is_given_no_path(
    server: MlflowServer,
    register: Callable[..., Outcome],
    run_job: Callable[..., Outcome],
    stages: dict[str, Artifact],
) -> None:
    register(server.url, "by-server")
    version = MlflowClient(server.url, server.url).get_model_version_by_alias("by-server", "candidate")
    assert version.source == stages["merged"].uri.replace("file://", "anemone:")
    found = run_job("candidate", {"model": "by-server"}, env={"MLFLOW_TRACKING_URI": server.url})
    record = json.loads((found.folder / "candidate.json").read_text())
    assert record["inputs"]["merged"] == stages["merged"].model_dump()


GONE = "the job ends with 75 in bounded time and says where MLflow is and what to do; once it is back, it goes on"


class Away:
    """What keeps MLflow from answering, and how it comes back."""

    def __init__(self, server: MlflowServer, database: Path) -> None:
        self._server, self._database = server, database
        self._lock: sqlite3.Connection | None = None

    def begin(self, how: str) -> str:
        """Returns the address that the job is given."""
        match how:
            case "down":
                self._server.kill()
            case "hanging":
                self._server.hang()
            case "locked":
                self._lock = sqlite3.connect(self._database, isolation_level=None)
                self._lock.execute("BEGIN EXCLUSIVE")
            case "read-only":
                return f"sqlite:///file:{self._database}?mode=ro&uri=true"
            case "damaged":
                shutil.copy(self._database, f"{self._database}.good")
                self._database.write_bytes(os.urandom(50_000))
        return self.address(how)

    def end(self, how: str) -> str:
        match how:
            case "down":
                self._server.start()
            case "hanging":
                self._server.wake()
            case "locked":
                assert self._lock is not None
                self._lock.close()
            case "damaged":
                shutil.move(f"{self._database}.good", self._database)
        return self.address(how)

    def address(self, how: str) -> str:
        return self._server.url if how in ("down", "hanging") else f"sqlite:///{self._database}"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        pytest.param(
            how, says, marks=scenario(given="a candidate to register", when=f"MLflow {when}", then=GONE), id=how
        )
        for how, when, says in [
            ("down", "does not run", "start its server, or wait for it"),
            ("hanging", "takes connections and never answers", "start its server, or wait for it"),
            ("locked", "has a database that somebody else holds", "wait for whoever holds its database"),
            ("read-only", "has a database that cannot be written", "see that it runs and can write"),
            ("damaged", "has a database whose file is rubbish", "where it is damaged, put a copy of it back"),
        ]
    ],
)
def test_a_registry_that_is_gone_is_waited_for(
    server: MlflowServer,
    database_file: Path,
    register: Callable[..., Outcome],
    told: Callable[[Outcome], str],
    how: str,
    says: str,
) -> None:
    away = Away(server, database_file)
    registry = away.begin(how)
    try:
        started = time.monotonic()
        outcome = register(registry, f"gone-{how}", expect=75)
        assert time.monotonic() - started < 150
    finally:
        registry = away.end(how)
    sentence = told(outcome)
    assert says in sentence
    assert f"MLflow at {registry.partition('://')[0]}" in sentence
    register(registry, f"gone-{how}")
    assert len(state(registry, f"gone-{how}")[0]) == 1


@scenario(
    given="an address of MLflow with a password",
    when="nobody answers there",
    then="the sentence names the address without the password",
)
def test_the_password_of_the_registry_is_not_told(
    register: Callable[..., Outcome], told: Callable[[Outcome], str]
) -> None:
    outcome = register("http://somebody:planted-secret@127.0.0.1:9", expect=75, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "MLflow at http://127.0.0.1:9" in told(outcome)
    assert "planted-secret" not in outcome.stdout + outcome.stderr


# ------------------------------------------------------------------------------------- between gate and release


@pytest.fixture
def registered(database: str, register: Callable[..., Outcome]) -> MlflowClient:
    """An MLflow with version 1 of `kubectl`, a candidate that was compared with no champion."""
    register(database)
    return MlflowClient(database, database)


@pytest.fixture
def ask(database: str, run_job: Callable[..., Outcome]) -> Callable[..., Outcome]:
    def run(job: str, expect: int = 0, **config: str) -> Outcome:
        return run_job(job, {"model": "kubectl", **config}, expect=expect, env={"MLFLOW_TRACKING_URI": database})

    return run


def by_hand(client: MlflowClient, alias: str) -> None:
    """A version that somebody made in MLflow, under an alias of ours."""
    version = client.create_model_version("kubectl", source="s3://elsewhere/model")
    client.set_registered_model_alias("kubectl", alias, str(version.version))


def another_champion(client: MlflowClient, stages: dict[str, Artifact]) -> None:
    by_hand(client, "champion")


def foreign_candidate(client: MlflowClient, stages: dict[str, Artifact]) -> None:
    by_hand(client, "candidate")


def champion_deleted(client: MlflowClient, stages: dict[str, Artifact]) -> None:
    client.set_registered_model_alias("kubectl", "champion", "1")
    shutil.rmtree(stages["merged"].uri.removeprefix("file://"))


REFUSED = "the job ends with 64 and says what to do"


@pytest.mark.parametrize(
    ("job", "happens", "says"),
    [
        pytest.param(
            "candidate",
            another_champion,
            "was compared with no champion, the champion is 2 by now: run customize again",
            marks=scenario(
                given="a candidate that passed its gate", when="another champion is live by now", then=REFUSED
            ),
            id="another-champion",
        ),
        pytest.param(
            "candidate",
            lambda client, stages: shutil.rmtree(stages["merged"].uri.removeprefix("file://")),
            "is gone: bring it back, or run customize again",
            marks=scenario(given="a candidate that passed its gate", when="its merged model is deleted", then=REFUSED),
            id="artifact-deleted",
        ),
        pytest.param(
            "candidate",
            foreign_candidate,
            "registered by an earlier Anemone, or by hand",
            marks=scenario(
                given="a candidate that passed its gate",
                when="somebody puts the alias candidate on a version of their own",
                then=REFUSED,
            ),
            id="foreign-candidate",
        ),
        pytest.param(
            "candidate",
            lambda client, stages: client.rename_registered_model("kubectl", "kubectl-old"),
            "MLflow knows no model 'kubectl'",
            marks=scenario(
                given="a candidate that passed its gate", when="the model is renamed in MLflow", then=REFUSED
            ),
            id="renamed",
        ),
        pytest.param(
            "candidate",
            lambda client, stages: client.delete_registered_model("kubectl"),
            "MLflow knows no model 'kubectl'",
            marks=scenario(
                given="a candidate that passed its gate", when="the model is deleted in MLflow", then=REFUSED
            ),
            id="deleted",
        ),
        pytest.param(
            "champion",
            another_champion,
            "lacks the tags anemone.artifact and anemone.digest: move the alias champion",
            marks=scenario(
                given="a run that looks for its champion",
                when="somebody puts the alias champion on a version of their own",
                then=REFUSED,
            ),
            id="foreign-champion",
        ),
        pytest.param(
            "champion",
            champion_deleted,
            "is gone: bring it back, or move the alias champion",
            marks=scenario(
                given="a run that looks for its champion", when="the champion's model is deleted", then=REFUSED
            ),
            id="champion-deleted",
        ),
    ],
)
def test_a_release_rests_on_what_is_registered_now(
    registered: MlflowClient,
    ask: Callable[..., Outcome],
    stages: dict[str, Artifact],
    told: Callable[[Outcome], str],
    job: str,
    happens: Callable[[MlflowClient, dict[str, Artifact]], object],
    says: str,
) -> None:
    happens(registered, stages)
    assert says in told(ask(job, expect=64))
