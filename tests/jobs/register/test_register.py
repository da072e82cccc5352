"""Registering: everything is recorded, and exactly once, whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.naming import digest
from include.artifacts.store import Store
from include.errors import ArtifactError, ConfigurationError
from include.specs.base import Artifact
from include.specs.register import Spec
from jobs.common.registry.aliases import CANDIDATE
from jobs.common.registry.tags import recipe_address
from jobs.common.runtime import load_spec
from jobs.register.candidate import describe
from jobs.register.registry import KEY_TAG, Candidate, register


@pytest.fixture
def client(database: str) -> MlflowClient:
    return MlflowClient(database, database)


@pytest.fixture
def commit_stage(store: Store) -> Callable[..., Artifact]:
    """Commit what a stage would: files, configuration, metrics, and what it was made from."""

    def commit(job: str, files: dict[str, str], inputs: dict[str, Artifact] | None = None, **record: Any) -> Artifact:
        now = datetime(2026, 1, 2, tzinfo=UTC)
        name = f"{job}-{digest([files, str(inputs)])[:20]}"
        with store.attempt(name) as attempt:
            for path, text in files.items():
                (attempt.files / path).write_text(text)
            manifest, _ = attempt.commit(
                job=job,
                code="0",
                inputs={key: InputEntry(**value.model_dump()) for key, value in (inputs or {}).items()},
                provenance=Provenance(
                    started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
                ),
                **record,
            )
        return Artifact(uri=store.uri(name), digest=manifest.content_digest)

    return commit


@pytest.fixture
def stages(commit_stage: Callable[..., Artifact]) -> dict[str, Artifact]:
    """The artifacts of a run that has no champion yet."""
    data = commit_stage("ingest", {"data.jsonl": "{}\n"})
    base = commit_stage("pretrain", {"loss.jsonl": ""})
    curated = commit_stage("curate", {"train.jsonl": ""}, {"data": data}, config={"seed": 42}, metrics={"kept": 90})
    points = [{"step": step, "loss": 1 / step, "learning_rate": 0.003} for step in range(1, 1501)]
    tuned = commit_stage(
        "finetune",
        {
            "loss.jsonl": "".join(json.dumps(point) + "\n" for point in points),
            "validation.jsonl": '{"step": 50, "loss": 0.5}\n{"step": 100, "loss": 0.25}\n',
        },
        {"base": base, "data": curated},
        config={"lora": {"dim": 16, "target_modules": ["*_proj"]}, "chat_template": "x" * 5000, "seed": 0},
        metrics={"best_step": 100, "diverged": False, "note": "text"},
    )
    merged = commit_stage("merge", {"config.json": "{}"}, {"tuned": tuned}, metrics={"mean_kl": 1e-9})
    champion = commit_stage(
        "champion", {"champion.json": json.dumps({"model": "kubectl", "version": None, "artifact": None})}
    )
    evaluation = commit_stage(
        "evaluate",
        {"results.json": "{}"},
        {"tuned": merged, "champion": champion},
        metrics={"tuned_exact_match": 0.92, "tuned_heldout_loss": None},
    )
    return {
        "data": data,
        "base": base,
        "curated": curated,
        "tuned": tuned,
        "merged": merged,
        "evaluation": evaluation,
        "champion": champion,
    }


RECIPE = {"name": "demo/tiny_lora", "overrides": {"canary.steps": [0.1]}, "stages": {"check": "x" * 200_000}}
"""Longer than any registry's tags."""

CONFIG = {"model": "kubectl", "recipe": "demo/tiny_lora", "run_id": "manual__1", "resolved_recipe": RECIPE}


@pytest.fixture
def spec_of(write_spec: Callable[..., tuple[str, str]]) -> Callable[[dict[str, Artifact]], Spec]:
    return lambda inputs: load_spec("register", write_spec("register", CONFIG, inputs)[0])


@pytest.fixture
def candidate(stages: dict[str, Artifact], spec_of: Callable[..., Spec]) -> Candidate:
    return describe(spec_of(stages))[0]


def test_run_curves_digests_version_and_alias_are_recorded(
    run_job: Callable[..., Any], client: MlflowClient, database: str, stages: dict[str, Artifact]
) -> None:
    outcome = run_job("register", CONFIG, stages, env={"MLFLOW_TRACKING_URI": database})
    record = json.loads((outcome.folder / "candidate.json").read_text())
    assert record == {
        "model": "kubectl",
        "version": "1",
        "artifact": {"uri": stages["merged"].uri, "digest": stages["merged"].digest},
        "champion_version": None,
        "metrics": {"tuned_exact_match": 0.92},
        "resolved_recipe": RECIPE,
    }
    version = client.get_model_version_by_alias("kubectl", CANDIDATE)
    assert str(version.version) == "1"
    assert version.source == stages["merged"].uri
    assert version.tags["anemone.digest"] == stages["merged"].digest
    assert version.tags["anemone.artifact"] == stages["merged"].uri
    address = recipe_address(version.tags)
    assert address is not None
    assert (address.uri, address.digest) == (outcome.artifact.uri, digest(RECIPE))

    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "kubectl"
    assert run.data.params["finetune.lora.dim"] == "16"
    assert run.data.params["finetune.chat_template"].startswith("sha256:")
    assert run.data.params["curate.seed"] == "42"
    assert run.data.metrics["evaluate.tuned_exact_match"] == 0.92
    assert "finetune.diverged" not in run.data.metrics
    assert run.data.tags["anemone.champion_version"] == "none"
    assert run.data.tags["anemone.recipe"] == "demo/tiny_lora"
    for name, artifact in stages.items():
        assert run.data.tags[f"anemone.input.{name}"] == artifact.digest
        assert version.tags[f"anemone.input_uri.{name}"] == artifact.uri
    curve = client.get_metric_history(version.run_id, "train.loss")
    assert len(curve) == 1500
    assert {point.step: point.value for point in curve}[4] == 0.25
    validation = client.get_metric_history(version.run_id, "validation.loss")
    assert [(point.step, point.value) for point in validation] == [(50, 0.5), (100, 0.25)]


def test_a_second_registration_returns_the_same_version(client: MlflowClient, candidate: Candidate) -> None:
    assert register(client, candidate) == register(client, candidate) == "1"
    assert _counts(client) == (1, 1)


def test_the_last_registration_says_how_a_version_is_released(
    client: MlflowClient, candidate: Candidate, stages: dict[str, Artifact], write_spec: Callable[..., tuple[str, str]]
) -> None:
    """The same training and evaluation with other keys of `engine` or `canary`: a remedy that changed nothing."""
    register(client, candidate)
    again = {
        **CONFIG,
        "run_id": "manual__2",
        "gates": {"evaluation": {"min_rows": 7}},
        "resolved_recipe": {**RECIPE, "overrides": {"engine.compute_type": "float32"}},
    }
    uri, name = write_spec("register", again, stages)
    other = describe(load_spec("register", uri))[0]
    assert register(client, other) == "1"
    tags = client.get_model_version("kubectl", "1").tags
    address = recipe_address(tags)
    assert address is not None
    assert address.uri.endswith(name) and address.digest == digest(again["resolved_recipe"])
    assert tags["anemone.run_id"] == "manual__2" and '"min_rows": 7' in tags["anemone.gates"]
    assert _counts(client) == (1, 1)


def test_another_evaluation_or_champion_is_another_version(client: MlflowClient, candidate: Candidate) -> None:
    assert register(client, candidate) == "1"
    assert register(client, replace(candidate, key="other")) == "2"
    assert _alias(client) == "2"


def test_registering_an_older_candidate_again_does_not_take_the_alias_back(
    client: MlflowClient, candidate: Candidate
) -> None:
    newer = replace(candidate, key="newer")
    register(client, candidate)
    register(client, newer)
    assert register(client, candidate) == "1"
    assert _alias(client) == "2"


WRITES = (
    "create_registered_model",
    "create_experiment",
    "create_run",
    "log_batch",
    "set_terminated",
    "create_model_version",
    "set_registered_model_alias",
)


class CrashError(Exception):
    """Stands for a SIGKILL."""


class Crashing:
    """A real client that dies just before or just after its n-th write."""

    def __init__(self, client: MlflowClient, at: int, after: bool) -> None:
        self._client, self._at, self._after = client, at, after
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in WRITES:
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            self.writes += 1
            if self.writes == self._at and not self._after:
                raise CrashError
            result = method(*arguments, **named)
            if self.writes == self._at:
                raise CrashError
            return result

        return call


def test_a_crash_anywhere_and_another_try_give_one_version(
    client: MlflowClient, candidate: Candidate, empty_database: Path, tmp_path: Path
) -> None:
    small = replace(candidate, measurements=candidate.measurements[:20])
    counting = Crashing(client, at=-1, after=False)
    register(counting, small)
    assert counting.writes >= len(WRITES)
    for number, (at, after) in enumerate(itertools.product(range(1, counting.writes + 1), (False, True))):
        path = tmp_path / f"crash-{number}.db"
        shutil.copy(empty_database, path)
        fresh = MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}")
        with pytest.raises(CrashError):
            register(Crashing(fresh, at, after), small)
        assert register(fresh, small) == "1"
        assert _counts(fresh) == (1, 1)
        assert _alias(fresh) == "1"
        (version,) = fresh.search_model_versions("name = 'kubectl'")
        run = fresh.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params == dict(small.parameters)


def _race(uri: str, candidate: Candidate, start: Any, answers: Any) -> None:
    client = MlflowClient(uri, uri)
    client.search_experiments()
    start.wait()
    answers.put([register(client, replace(candidate, key=f"turn-{turn}")) for turn in range(4)])


def test_two_at_once_agree_on_one_version_of_each_key(database: str, candidate: Candidate) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=_race, args=(database, replace(candidate, measurements=()), start, answers), daemon=True)
        for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    first, second = answers.get(timeout=120), answers.get(timeout=120)
    for racer in racers:
        racer.join()
    assert first == second
    client = MlflowClient(database, database)
    versions = client.search_model_versions("name = 'kubectl'")
    assert sorted(version.tags[KEY_TAG] for version in versions) == [f"turn-{turn}" for turn in range(4)]
    assert _counts(client) == (4, 4)
    assert _alias(client) == first[-1] == str(max(int(version.version) for version in versions))


def test_a_younger_double_that_a_crash_left_is_removed(client: MlflowClient, candidate: Candidate) -> None:
    register(client, candidate)
    client.create_model_version("kubectl", source=candidate.uri, tags={KEY_TAG: candidate.key})
    assert register(client, candidate) == "1"
    assert _counts(client) == (1, 1)


def test_a_version_of_an_earlier_anemone_is_completed(client: MlflowClient, candidate: Candidate) -> None:
    earlier = {key: value for key, value in candidate.tags.items() if not key.startswith("anemone.input_uri.")}
    register(client, replace(candidate, tags=earlier))
    assert register(client, candidate) == "1"
    tags = client.get_model_version("kubectl", "1").tags
    assert tags["anemone.input_uri.merged"] == candidate.uri
    assert dict(candidate.tags).items() <= tags.items()


def test_a_deleted_experiment_is_restored(client: MlflowClient, candidate: Candidate) -> None:
    client.delete_experiment(client.create_experiment("kubectl"))
    assert register(client, candidate) == "1"
    assert client.get_experiment_by_name("kubectl").lifecycle_stage == "active"


@pytest.mark.remedy("clear the evaluation's task and those after it")
def test_an_evaluation_of_another_model_is_refused(
    stages: dict[str, Artifact], spec_of: Callable[..., Spec], commit_stage: Callable[..., Artifact]
) -> None:
    other = commit_stage("merge", {"config.json": "{} "})
    with pytest.raises(
        ConfigurationError, match="evaluated another model than .*: clear the evaluation's task and those"
    ):
        describe(spec_of({**stages, "merged": other}))
    cleared = commit_stage("evaluate", {"results.json": "{}"}, {"tuned": other, "champion": stages["champion"]})
    describe(spec_of({**stages, "merged": other, "evaluation": cleared}))


@pytest.mark.remedy("clear the champion's task and those after it")
def test_an_evaluation_against_another_champion_is_refused(
    stages: dict[str, Artifact], spec_of: Callable[..., Spec], commit_stage: Callable[..., Artifact]
) -> None:
    artifact = {"uri": stages["base"].uri, "digest": stages["base"].digest}
    record = {"model": "kubectl", "version": "3", "artifact": artifact}
    crowned = commit_stage("champion", {"champion.json": json.dumps(record)})
    says = "made against another champion of kubectl than version 3: clear the champion's task and those after it"
    with pytest.raises(ConfigurationError, match=says):
        describe(spec_of({**stages, "champion": crowned}))
    # The champion's task always runs; the evaluation has another name by what it finds.
    cleared = commit_stage("evaluate", {"results.json": "{}"}, {"tuned": stages["merged"], "champion": crowned})
    describe(spec_of({**stages, "champion": crowned, "evaluation": cleared}))


@pytest.mark.remedy("clear the task that makes it, and those after it")
def test_an_input_that_is_gone_is_refused(
    stages: dict[str, Artifact], spec_of: Callable[..., Spec], commit_stage: Callable[..., Artifact]
) -> None:
    curated = stages["curated"]
    shutil.rmtree(curated.uri.removeprefix("file://"))
    with pytest.raises(
        ArtifactError, match=r"curate-\w+ does not exist: clear the task that makes it, and those after"
    ):
        describe(spec_of(stages))
    record = {"config": {"seed": 42}, "metrics": {"kept": 90}}
    assert commit_stage("curate", {"train.jsonl": ""}, {"data": stages["data"]}, **record) == curated
    describe(spec_of(stages))


def _alias(client: MlflowClient) -> str:
    return str(client.get_model_version_by_alias("kubectl", CANDIDATE).version)


def _counts(client: MlflowClient) -> tuple[int, int]:
    """Versions, and runs that are not deleted."""
    experiment = client.get_experiment_by_name("kubectl").experiment_id
    return len(client.search_model_versions("name = 'kubectl'")), len(client.search_runs([experiment]))
