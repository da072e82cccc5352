"""The unfinished runs that the DAG `retention` finds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from include.artifacts.uses import Run, note_uses
from include.job_plan import JobPlan
from include.platforms import load_platform
from include.specs.retention import Config
from operators import retention

RUNS = [Run(dag_id=dag, run_id=f"manual__{number}") for dag in ("customize", "release") for number in range(60)]
UNFINISHED = {RUNS[3], RUNS[59], RUNS[61]}


class Airflow:
    """A task's view of Airflow: how many of some runs of a DAG are in some states."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def get_dr_count(self, *, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        assert states == ["queued", "running"]
        self.asked.append(len(run_ids))
        return sum(run.dag_id == dag_id and run.run_id in run_ids for run in UNFINISHED)


@pytest.fixture
def context(store: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    platform = load_platform("laptop").model_copy(update={"store": store.root})
    monkeypatch.setattr(retention, "current_platform", lambda: platform)
    return {"ti": Airflow(), "params": {"delete": True}}


def test_unfinished_runs_are_found_in_few_requests(store: Any, context: dict[str, Any]) -> None:
    for run in RUNS:
        note_uses(store, run, ["data-1"])
    section = retention.plan_section(context)
    config = Config.model_validate(section["config"])
    assert set(config.unfinished_runs) == UNFINISHED
    assert config.policy.min_age_hours == 24
    assert sorted(context["ti"].asked)[-1] == 50
    assert len(context["ti"].asked) < len(RUNS)


def test_a_section_of_an_earlier_version_is_still_read(store: Any, context: dict[str, Any]) -> None:
    config = retention.plan_section(context)["config"]
    config["going_on"] = [run.model_dump() for run in sorted(UNFINISHED, key=str)]
    del config["unfinished_runs"]
    assert set(Config.model_validate(config).unfinished_runs) == UNFINISHED


def test_a_store_that_is_away_is_tried_again(store: Any, context: dict[str, Any]) -> None:
    Path(store.root.removeprefix("file://")).rmdir()
    with pytest.raises(AirflowException, match="is not there"):
        retention.plan_section(context)


@pytest.mark.remedy("the Param delete is off")
def test_without_the_param_nothing_is_swept(context: dict[str, Any]) -> None:
    with pytest.raises(AirflowSkipException, match="the Param delete is off"):
        retention.sweep_section({**context, "params": {"delete": False}})
    assert retention.sweep_section({**context, "params": {"delete": True}})["job"] == "retention"


def test_a_plan_notes_what_it_takes_and_makes(store: Any, commit: Any) -> None:
    commit("ingest-1", {"data.jsonl": "{}"})
    run = Run(dag_id="customize", run_id="manual__1")
    inputs = {"data": store.uri("ingest-1"), "heldout": None}
    plan = JobPlan.prepare("curate", config={}, inputs=inputs, store=store, run=run)
    noted = {entry.path for entry in store.listing("uses") if not entry.is_folder}
    assert noted == {f"uses/{name}/{run.key}" for name in ("ingest-1", plan.name)}


def test_its_schedule_and_its_switch_are_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(retention=SimpleNamespace(cron=None, delete=True))
    monkeypatch.setattr(retention, "current_platform", lambda: own)
    assert retention.retention_schedule() is None
    assert retention.deletes_by_default()
