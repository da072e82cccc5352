from __future__ import annotations

from pathlib import Path

import pytest

from include.errors import ArtifactError, ConfigurationError, TryAgainError
from include.job_plan import JobFailedError, JobPlan
from include.specs import spec_class

CONFIG = {"variant": "heldout", "rows": 5}


def plan(store, config=CONFIG, **kwargs):
    return JobPlan.prepare("generate", config=config, inputs={}, store=store, **kwargs)


def test_the_name_is_known_before_the_start_and_depends_on_what_matters(store):
    assert plan(store).name == plan(store).name
    assert plan(store).name != plan(store, {**CONFIG, "rows": 6}).name
    assert plan(store).name != plan(store, refresh="run-2").name


def test_inputs_count_by_their_bytes_not_by_their_name(store, commit):
    for name in ("ingest-1", "ingest-2"):
        commit(name, {"data.jsonl": "{}"})
    commit("ingest-3", {"data.jsonl": "{} "})

    def curate(name):
        return JobPlan.prepare("curate", config={}, inputs={"data": store.uri(name), "heldout": None}, store=store).name

    assert curate("ingest-1") == curate("ingest-2") != curate("ingest-3")


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
        JobPlan.prepare("curate", config={}, inputs={"data": store.uri("gone")}, store=store)


@pytest.mark.parametrize(
    ("code", "retryable"), [(64, False), (65, False), (70, False), (75, True), (143, True), (137, True), (1, True)]
)
def test_the_exit_code_decides_on_the_retry(store, code, retryable):
    with pytest.raises(JobFailedError) as failure:
        plan(store).conclude(code, "what, where, what to do")
    assert (failure.value.retryable, failure.value.exit_code) == (retryable, code)
    assert ("memory" if code == 137 else "what, where, what to do") in str(failure.value)


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
