from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.platforms import load_platform
from include.recipes import resolve
from include.recipes.resolved import ResolvedRecipe
from operators import recipes


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    laptop = load_platform("laptop")
    arrivals = laptop.arrivals.model_copy(update={"folder": str(tmp_path)})
    monkeypatch.setattr(recipes, "current_platform", lambda: laptop.model_copy(update={"arrivals": arrivals}))
    return tmp_path


def context(params, run_id="manual__1", **conf):
    return {"params": params, "run_id": run_id, "dag_run": SimpleNamespace(conf=conf)}


def test_the_form_names_the_data_and_overrides_the_recipe(inbox):
    params = {"recipe": "demo/0.8M_lora_cpu", "overrides": {"finetune.steps": 60}, "data": "/data/mine.jsonl"}
    sections = recipes.planned_customization(context(params, digest="a" * 64))
    assert sections["ingest"]["config"]["announced"] == "a" * 64
    assert sections["ingest"]["config"]["source"] == "/data/mine.jsonl"
    assert sections["finetune"]["config"]["steps"] == 60
    assert sections["register"]["config"]["run_id"] == "manual__1"
    assert sections["register"]["config"]["gates"] == {"data_quality": {}, **sections["gates"]}
    carried = ResolvedRecipe.of(sections["register"]["config"]["resolved_recipe"], "this run")
    assert carried.overrides == {"finetune.steps": 60} and carried.section("finetune").config["steps"] == 60
    assert carried.canary == resolve("demo/0.8M_lora_cpu").canary and carried.section("engine").job == "engine"
    assert set(resolve("demo/0.8M_lora_cpu", {"gates": {}}).limits("evaluation")) == set(
        sections["gates"]["evaluation"]
    )


@pytest.mark.remedy("the Param data is empty and … holds no *.jsonl file: name a data set")
def test_without_a_name_the_newest_arrival_is_taken(inbox):
    params = {"recipe": "demo/0.8M_lora_cpu", "overrides": {}, "data": None}
    with pytest.raises(AirflowFailException, match=r"holds no \*\.jsonl file: name a data set"):
        recipes.planned_customization(context(params))
    named = recipes.planned_customization(context({**params, "data": "/data/mine.jsonl"}))
    assert named["ingest"]["config"]["source"] == "/data/mine.jsonl"
    for age, name in enumerate((".unfinished.jsonl", "new.jsonl", "old.jsonl")):
        (inbox / name).write_text("{}")
        os.utime(inbox / name, (1000 - age, 1000 - age))
    sections = recipes.planned_customization(context(params))
    assert sections["ingest"]["config"]["source"] == str(inbox / "new.jsonl")


def test_a_recipe_whose_processes_do_not_find_their_gpus_ends_the_run_at_its_first_task(monkeypatch):
    for name in ("ANEMONE_STORE", "ANEMONE_S3_REGION"):
        monkeypatch.setenv(name, "s3://bucket/anemone")
    for name in ("JOBS", "SERVING", "NEMO"):
        monkeypatch.setenv(f"ANEMONE_{name}_IMAGE", "image@sha256:" + "0" * 64)
    load_platform.cache_clear()
    platform = load_platform("eks-a100")
    load_platform.cache_clear()
    monkeypatch.setattr(recipes, "current_platform", lambda: platform)
    params = {"recipe": "qwen2_5/7B_sft_8gpu", "overrides": {"sizes.finetune": "gpu1"}, "data": "s3://bucket/x.jsonl"}
    with pytest.raises(AirflowFailException, match=r"finetune runs 8 processes on a node.*set sizes\.finetune: gpu8"):
        recipes.planned_customization(context(params))
    assert recipes.planned_customization(context({**params, "overrides": {}}))["finetune"]["size"] == "gpu8"


def test_an_unknown_recipe_or_key_ends_the_run_at_its_first_task(inbox):
    params = {"recipe": "demo/0.8M_lora_cpu", "overrides": {"finetune.stepz": 1}, "data": None}
    with pytest.raises(AirflowFailException, match="unknown key 'stepz': did you mean 'steps'"):
        recipes.planned_customization(context(params))


def test_what_its_release_would_refuse_ends_the_run_before_anything_is_trained(inbox):
    params = {"recipe": "own/0.8M_lora_cpu", "overrides": {"evaluate.max_new_tokens": 256}, "data": "/data/mine.jsonl"}
    with pytest.raises(AirflowFailException, match="engine: .*max_new_tokens 256 leaves no room for a prompt"):
        recipes.planned_customization(context(params))
