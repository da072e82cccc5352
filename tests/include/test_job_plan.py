from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from include.errors import ArtifactError, ConfigurationError, TryAgainError
from include.job_plan import JobFailedError, JobPlan
from include.specs import spec_class

CONFIG = {"variant": "heldout", "rows": 5}


def plan(store, config=CONFIG, **kwargs):
    return JobPlan.prepare("generate", config=config, inputs={}, store=store, **kwargs)


def curate(store, data):
    return JobPlan.prepare("curate", config={}, inputs={"data": data, "heldout": None}, store=store)


def test_the_name_is_known_before_the_start_and_depends_on_what_matters(store):
    assert plan(store).name == plan(store).name
    assert plan(store).name != plan(store, {**CONFIG, "rows": 6}).name
    assert plan(store).name != plan(store, refresh="run-2").name


def test_inputs_count_by_their_bytes_not_by_their_name(store, commit):
    for name in ("ingest-1", "ingest-2"):
        commit(name, {"data.jsonl": "{}"})
    commit("ingest-3", {"data.jsonl": "{} "})

    def curated(name):
        return curate(store, store.uri(name)).name

    assert curated("ingest-1") == curated("ingest-2") != curated("ingest-3")


def test_an_effect_never_takes_an_old_name(store):
    first, second = (JobPlan.prepare("champion", config={"model": "m"}, inputs={}, store=store).name for _ in range(2))
    assert first != second


def test_the_spec_that_is_written_is_the_one_that_was_planned(store):
    planned = plan(store)
    written = Path(planned.write_spec().removeprefix("file://")).read_bytes()
    assert spec_class("generate").model_validate_json(written) == planned.spec


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**CONFIG, "row": 5}, "config.row: Extra inputs are not permitted"),
        ({**CONFIG, "rows": 0}, "config.rows: Input should be greater than or equal to 1"),
        ({"rows": 5}, "config.variant: Field required"),
    ],
)
def test_a_wrong_configuration_names_the_key(store, config, says):
    with pytest.raises(ConfigurationError, match=f"job generate: {says}"):
        plan(store, config)


def test_a_missing_input_is_found_before_the_start(store):
    with pytest.raises(ArtifactError, match="gone does not exist"):
        curate(store, store.uri("gone"))


@pytest.mark.remedy("does not exist: clear the task that makes it, and those after it")
def test_the_cleared_task_makes_what_is_missing(store, commit):
    missing = plan(store)
    for refused in (lambda: curate(store, missing.uri), lambda: store.read_bytes(missing.name, "data.jsonl")):
        with pytest.raises(ArtifactError, match="does not exist: clear the task that makes it, and those after it"):
            refused()
    cleared = plan(store)
    assert cleared.committed() is None
    commit(cleared.name, {"data.jsonl": "{}"})
    assert curate(store, missing.uri).spec.inputs.data.uri == missing.uri


@pytest.mark.remedy("remove its folder and clear the task that made it")
@pytest.mark.remedy("remove the artifact's folder and clear the task that made it")
@pytest.mark.parametrize("damaged", ["manifest.json", "data.jsonl"])
def test_what_is_damaged_is_made_again_once_its_folder_is_removed(store, commit, damaged):
    made = plan(store)
    commit(made.name, {"data.jsonl": "{}"})
    folder = Path(made.uri.removeprefix("file://"))
    next(folder.rglob(damaged)).write_text("[")
    with pytest.raises(ArtifactError, match=r"remove (its|the artifact's) folder and clear the task that made it"):
        store.read_bytes(made.name, "data.jsonl")
    shutil.rmtree(folder)
    cleared = plan(store)
    assert cleared.committed() is None
    commit(cleared.name, {"data.jsonl": "{}"})
    assert store.read_bytes(made.name, "data.jsonl") == b"{}"


@pytest.mark.remedy("clear this task, which takes what is there")
def test_a_cleared_task_takes_the_bytes_that_are_there(store, commit):
    commit("ingest-1", {"data.jsonl": "{}"})
    planned = curate(store, store.uri("ingest-1"))
    shutil.rmtree(store.uri("ingest-1").removeprefix("file://"))
    commit("ingest-1", {"data.jsonl": "{} "})
    refused = pytest.raises(ArtifactError, match="clear this task, which takes what is there")
    with refused, store.open_files("ingest-1", digest=planned.spec.inputs.data.digest):
        pass
    cleared = curate(store, store.uri("ingest-1"))
    with store.open_files("ingest-1", digest=cleared.spec.inputs.data.digest) as folder:
        assert (folder / "data.jsonl").read_text() == "{} "


@pytest.mark.remedy("run the DAG again with the Param refresh naming the stage that made it")
def test_only_another_run_with_refresh_makes_anew_what_is_committed(store, commit):
    made = plan(store)
    commit(made.name, {"data.json": "["})
    with pytest.raises(ArtifactError, match="run the DAG again with the Param refresh naming the stage that made it"):
        store.read_json(made.name, "data.json")
    assert plan(store).committed() is not None
    anew = plan(store, refresh="manual__2")
    assert anew.committed() is None
    commit(anew.name, {"data.json": "{}"})
    assert store.read_json(anew.name, "data.json") == {}


@pytest.mark.parametrize(
    ("code", "retryable"), [(64, False), (65, False), (70, False), (75, True), (143, True), (137, True), (1, True)]
)
def test_the_exit_code_decides_on_the_retry(store, code, retryable):
    with pytest.raises(JobFailedError) as failure:
        plan(store).conclude(code, "what, where, what to do")
    assert (failure.value.retryable, failure.value.exit_code) == (retryable, code)
    assert ("give it more memory" if code == 137 else "what, where, what to do") in str(failure.value)


def test_exit_0_without_an_artifact_is_no_success(store):
    with pytest.raises(JobFailedError, match="left no artifact") as failure:
        plan(store).conclude(0, None)
    assert failure.value.retryable


def test_a_plan_that_another_process_has_written_is_the_same(store):
    planned = plan(store)
    again = JobPlan.stored(planned.write_spec(), store)
    assert (again.spec, again.uri) == (planned.spec, planned.uri)


def test_a_plan_that_is_gone_is_made_anew_by_the_next_try(store):
    with pytest.raises(TryAgainError, match=r"x\.json is gone from the store: the next try plans the job again"):
        JobPlan.stored(f"{store.root}/specs/some/x.json", store)


def test_an_image_is_part_of_the_name(store):
    names = {plan(store, image=image).name for image in (None, "jobs:1", "jobs:2")}
    assert len(names) == 3
