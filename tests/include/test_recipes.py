from __future__ import annotations

import json
import re

import pytest

from include import recipes
from include.errors import ConfigurationError
from include.home import PROJECT
from include.recipes import override, recipe_model, recipe_names, recipe_problem, resolve
from include.recipes.resolved import ResolvedRecipe, Section
from include.release.rollouts import CanaryPolicy

DEMO = "demo/0.8M_lora_cpu"
SUITE = {
    "name": "mine",
    "expectations": [{"type": "t", "kwargs": {}, "description": "d", "meta": {"name": "n"}, "kwarg": {}}],
}
"""One of its expectations has an unknown key."""


@pytest.mark.parametrize("name", recipe_names("finetune"))
def test_every_recipe_resolves_to_plain_json(name):
    sections = resolve(name).plan()
    assert json.loads(json.dumps(sections)) == sections
    assert sections["finetune"]["config"]["max_tokens"] == sections["check"]["config"]["max_tokens"]


@pytest.mark.parametrize("name", recipe_names("finetune"))
def test_every_recipe_opens_with_the_command_that_runs_it(name):
    text = (PROJECT / "include" / "recipes" / f"{name}.yaml").read_text()
    head = text[: text.index("description:")]
    if "gpu" in name:
        (command,) = re.findall(r"airflow dags trigger customize --conf '(.*)'", head)
        assert json.loads(command) == {"data": "s3://BUCKET/my.jsonl", "recipe": name}
    else:
        assert f"make run DATA=my.jsonl RECIPE={name}" in head


def test_a_form_offers_the_recipes_that_name_its_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    for name, text in (("a", "finetune: {}\n"), ("b", "base:\n  finetune: {}\n"), ("c", "distill : {}\n")):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{name}.yaml").write_text(f"description: d\n{text}")
    assert recipe_names("finetune") == ["own/a"]
    assert recipe_names("distill") == ["own/c"]
    assert recipe_names() == ["own/a", "own/b", "own/c"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"finetune: {\n", "no YAML: line 2, column 1: "),
        (b"description: \xff\n", "not UTF-8: invalid start byte at byte 13"),
        (b"description: 2026-13-45\n", "no YAML: month must be in 1..12"),
        (b"- finetune\n", "the file does not hold keys with values"),
        (b"", "the file does not hold keys with values"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_error_and_offered_so_that_somebody_hears_of_it(
    tmp_path, monkeypatch, content, says
):
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigurationError, match="recipe own/a: ") as error:
        resolve("own/a")
    assert says in str(error.value)
    assert recipe_names("finetune") == ["own/a"] and recipe_problem("own/a") == str(error.value)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("finetune: {\nmodel: mine # ours\n", "mine"),
        ("model : 'mine'\n", "mine"),
        ("base:\n  model: other\n", None),
        ("model: Not One\n", None),
        ("", None),
    ],
)
def test_a_recipe_says_its_model_whatever_else_is_wrong_with_it(tmp_path, monkeypatch, text, model):
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.yaml").write_text(text)
    assert (recipe_model("own/a"), recipe_model("own/gone")) == (model, None)


def test_the_models_read_from_the_files_are_those_of_the_recipes():
    for name in recipe_names():
        assert recipe_model(name) == resolve(name).model


def test_files_are_replaced_by_what_they_hold():
    sections = resolve(DEMO).plan()
    assert "generation" in sections["finetune"]["config"]["chat_template"]
    assert sections["check"]["config"]["suite"]["expectations"]


def test_the_engine_serves_what_was_evaluated_unless_it_says_otherwise():
    sections = resolve(DEMO).plan()
    engine, evaluate = sections["engine"]["config"], sections["evaluate"]["config"]
    for key in ("max_tokens", "max_new_tokens", "rows"):
        assert engine[key] == evaluate[key]
    changed = resolve(DEMO, {"engine.max_new_tokens": 12, "evaluate.rows": 300}).section("engine").config
    assert (changed["max_new_tokens"], changed["rows"]) == (12, 300)


def test_the_check_knows_what_the_stages_after_it_ask():
    sections = resolve("own/0.8M_lora_cpu", {"finetune.max_tokens": 200, "gates.evaluation.min_rows": 45}).plan()
    check = sections["check"]["config"]
    assert check["training"] == {"max_tokens": 200, "processes": 1}
    for key in ("rows", "max_new_tokens", "max_tokens", "few_shot", "seed"):
        assert check["evaluation"][key] == sections["evaluate"]["config"][key]
    assert check["evaluation"]["heldout_fraction"] == sections["curate"]["config"]["heldout_fraction"]
    assert check["evaluation"]["min_rows"] == 45 and check["evaluation"]["max_too_long"] == 0.05
    served = ("rows", "max_new_tokens", "max_tokens")
    assert check["serving"] == {key: sections["engine"]["config"][key] for key in served}


def test_a_run_without_a_stage_asks_nothing_for_it(tmp_path, monkeypatch):
    text = (PROJECT / "include" / "recipes" / f"{DEMO}.yaml").read_text()
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    (tmp_path / "demo").mkdir()
    kept = text[: text.index("finetune:")]
    (tmp_path / "demo" / "only.yaml").write_text(kept)
    check = resolve("demo/only").section("check").config
    assert (check["training"], check["evaluation"], check["serving"]) == (None, None, None)
    with_evaluation = resolve("demo/only", stages=["evaluate"]).section("check").config
    assert with_evaluation["evaluation"]["min_rows"] == 500 and with_evaluation["training"] is None
    assert (
        resolve("demo/only", {"check.evaluation.rows": 7}, ["evaluate"]).section("check").config["evaluation"]["rows"]
        == 7
    )
    with pytest.raises(ConfigurationError, match="check: unknown key 'evaluation.row': did you mean 'rows'"):
        resolve("demo/only", {"check.evaluation.row": 7}, ["evaluate"])


def test_the_canary_is_a_whole_policy():
    assert resolve(DEMO).canary.quality.answer_format == r"^kubectl [^\n]+$"
    assert resolve(DEMO, {"canary": {}}).canary == CanaryPolicy()
    assert CanaryPolicy.model_validate(resolve(DEMO).plan()["canary"]) == resolve(DEMO).canary


def test_overrides_name_keys_by_path():
    sections = resolve(DEMO, {"finetune.steps": 70, "finetune.lora.dim": 4, "heldout": None}).plan()
    assert sections["finetune"]["config"]["steps"] == 70
    assert sections["finetune"]["config"]["lora"] == {**resolve(DEMO).section("finetune").config["lora"], "dim": 4}
    assert sections["heldout"] is None


def test_a_stage_is_any_job_that_a_recipe_or_a_dag_names():
    recipe = resolve(DEMO, {"pretrain.steps": 7}, stages=["champion", "merge"])
    assert recipe.section("pretrain").config["steps"] == 7
    assert recipe.section("champion") == Section(job="champion", config={"model": "kubectl"})
    assert "champion" not in resolve(DEMO).stages
    own = resolve("own/0.8M_lora_cpu", stages=["merge"])
    assert "merge" not in resolve("own/0.8M_lora_cpu").stages
    assert own.section("merge").config["max_tokens"] == 256 and own.stages["heldout"] is None
    with pytest.raises(ConfigurationError, match="no job 'mrge': did you mean 'merge'"):
        resolve(DEMO, stages=["mrge"])


def test_a_section_overrules_what_its_recipe_shares():
    found = resolve(DEMO, {"evaluate.max_tokens": 64, "evaluate.chat_template": "chatml.jinja"}).section("evaluate")
    assert found.config["max_tokens"] == 64
    assert "im_start" in found.config["chat_template"]


def test_what_only_a_run_knows_is_asked_of_no_recipe():
    section = resolve(DEMO, {"ingest.source": "/ignored"}).section("ingest")
    assert "source" not in section.config
    assert section.with_config(source="/data").config == {**section.config, "source": "/data"}


def test_a_section_keeps_its_json_form():
    plan = resolve("qwen2_5/7B_sft_8gpu").plan()
    assert set(plan["finetune"]) == {"job", "config", "size"} and set(plan["evaluate"]) == {"job", "config"}
    assert Section.of(plan["finetune"]) == resolve("qwen2_5/7B_sft_8gpu").section("finetune")
    with pytest.raises(ConfigurationError, match="pass stage"):
        Section.of({**plan["finetune"], "cofnig": {}})


def test_a_stage_that_a_run_adds_has_the_size_of_its_recipe():
    recipe = resolve(DEMO, {"sizes.register": "large"}).with_stages(register=Section(job="register", config={}))
    assert recipe.section("register").size == "large"


ALL = ("ingest", "base", "heldout", "curate", "check", "finetune", "merge", "evaluate", "champion", "engine")


def travelled(recipe):
    """The recipe as a candidate's release reads it."""
    return ResolvedRecipe.of(json.loads(json.dumps(recipe.model_dump(mode="json"))), "version 1 of kubectl")


@pytest.fixture
def no_file_is_read(monkeypatch, tmp_path):
    """Edited, renamed or deleted: what a candidate brings along does not depend on files."""

    def forget():
        monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
        monkeypatch.setattr("include.recipes.document._INCLUDE", tmp_path)

    return forget


@pytest.mark.parametrize("name", recipe_names("finetune"))
def test_a_candidates_recipe_stays_the_same_whatever_its_file_holds_by_now(name, no_file_is_read):
    recipe = resolve(name, {"canary.min_requests": 7}, stages=ALL)
    no_file_is_read()
    assert override(travelled(recipe), {}, ALL) == recipe


@pytest.mark.parametrize(
    "overrides",
    [
        {"engine.compute_type": "float32", "engine.parity.prompts": 3},
        {"engine": {"batch_size": 8}},
        {"max_tokens": 128},
        {"evaluate.max_new_tokens": 30},
        {"evaluate": {"rows": 50}},
        {"canary.steps": [0.3], "canary.quality.golden_prompts": 2},
        {"canary": {}},
        {"gates.evaluation.min_rows": 40},
        {"sizes.engine": "large"},
        {"model": "another"},
        {"base.config.seed": 3, "heldout": None},
        {"check.suite": "instructions", "pretrain.steps": 9},
    ],
)
def test_overrides_change_a_candidates_recipe_as_they_change_a_file(overrides, no_file_is_read):
    first = {"evaluate.max_new_tokens": 40, "engine.batch_size": 16}
    stages = {*ALL, *(key.split(".")[0] for key in overrides)} - {"canary", "gates", "sizes", "model", "max_tokens"}
    carried, before = (travelled(resolve(DEMO, first, stages=ALL)) for _ in range(2))
    wanted = resolve(DEMO, {**first, **overrides}, stages=sorted(stages))
    if "check.suite" not in overrides:
        no_file_is_read()
    found = override(carried, overrides, sorted(stages))
    assert found.model_dump() == wanted.model_dump()
    assert carried == before


def test_the_check_keeps_what_it_had_of_stages_that_the_caller_does_not_run():
    carried = travelled(resolve(DEMO, stages=ALL))
    before, found = (
        made.section("check").config for made in (carried, override(carried, {"check.max_tokens": 90}, []))
    )
    assert found == {**before, "max_tokens": 90} and all(before[key] for key in ("training", "evaluation", "serving"))


def test_a_stage_that_nobody_runs_need_not_be_known_any_more():
    carried = resolve(DEMO)
    removed = Section(job="distil", config={"x": 1})
    older = carried.model_copy(update={"stages": {**carried.stages, "distil": removed}, "sizes": {"distil": "large"}})
    found = override(older, {"engine.compute_type": "float32"}, ["engine"])
    assert found.section("engine").config["compute_type"] == "float32" and set(found.stages) == {"engine"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"engine.compute": "int8"}, "engine: unknown key 'compute': did you mean 'compute_type'"),
        ({"engine.max_new_tokens": 96}, "engine: recipe: Value error, max_new_tokens 96 leaves no room"),
        ({"canary.stepz": [0.1]}, "unknown key 'canary.stepz': did you mean 'steps'"),
        ({"finetune.stepz": 1}, "finetune: unknown key 'stepz': did you mean 'steps'"),
        ({"sizes.engin": "large"}, "sizes: there is no stage 'engin': did you mean 'engine'"),
        ({"enginee.rows": 1}, "unknown key 'enginee': did you mean 'engine'"),
    ],
)
def test_a_wrong_override_of_a_candidates_recipe_is_named_with_the_nearest_key(overrides, says):
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        override(travelled(resolve(DEMO)), overrides, ["engine"])


def test_a_candidates_recipe_of_another_version_is_refused_with_what_to_do():
    document = resolve(DEMO).model_dump(mode="json")
    document["canary"]["velocity"] = 1
    with pytest.raises(
        ConfigurationError, match=r"version 1 of kubectl cannot be read \(canary.velocity.*run customize"
    ):
        ResolvedRecipe.of(document, "version 1 of kubectl")


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("demo/0.8M_lora", {}, "no recipe 'demo/0.8M_lora': did you mean 'demo/0.8M_lora_cpu'"),
        ("../../etc/passwd", {}, "no recipe"),
        (DEMO, {"finetune.stepz": 1}, "unknown key 'stepz': did you mean 'steps'"),
        (DEMO, {"curate.pii.actoin": "drop"}, "unknown key 'pii.actoin': did you mean 'action'"),
        (DEMO, {"finetune.lora.dims": 8}, "unknown key 'lora.dims': did you mean 'dim'"),
        (DEMO, {"gates.evaluation.min_exact": 1}, "gates.evaluation: unknown key 'min_exact': did you mean 'min_exact"),
        (DEMO, {"gates.evaluatoin.min_rows": 1}, "unknown key 'gates.evaluatoin': did you mean 'evaluation'"),
        (DEMO, {"gates.evaluation.min_rows": 0}, "gates.evaluation: min_rows: Input should be greater"),
        (DEMO, {"speed": 1}, "unknown key 'speed'"),
        (DEMO, {"finetun": {"steps": 1}}, "unknown key 'finetun': did you mean 'finetune'"),
        (DEMO, {"heldoutt": {"job": "generate"}}, "unknown key 'heldoutt': did you mean 'heldout'"),
        (DEMO, {"merge": None}, "merge: its value is None, not keys with values"),
        (DEMO, {"champion.mdel": "x"}, "champion: unknown key 'mdel': did you mean 'model'"),
        (DEMO, {"sizes.finetun": "large"}, "sizes: there is no stage 'finetun': did you mean 'finetune'"),
        (DEMO, {"heldout": None, "sizes.heldout": "large"}, "sizes: there is no stage 'heldout'"),
        (DEMO, {"sizes.pretrain": "large"}, "sizes: there is no stage 'pretrain'"),
        (DEMO, {"finetune.steps": "many"}, "finetune: steps: Input should be a valid integer"),
        (DEMO, {"finetune.steps": 0}, "finetune: steps: Input should be greater than or equal to 1"),
        (DEMO, {"finetune.local_batch_size": 5}, "32 is not a multiple of local_batch_size × processes"),
        (DEMO, {"finetune.steps.more": 1}, "does not name a key of the recipe"),
        (DEMO, {"chat_template": "../platforms/laptop.yaml"}, "which include/templates/ does not hold"),
        (DEMO, {"check.suite": "kubect"}, "did you mean 'kubectl.json'"),
        (DEMO, {"check.suite": SUITE}, "check: unknown key 'suite.expectations.0.kwarg': did you mean 'kwargs'"),
        (DEMO, {"base.job": "pretrian"}, "no job 'pretrian'"),
        (DEMO, {"engine.compute": "int8"}, "unknown key 'compute': did you mean 'compute_type'"),
        (DEMO, {"engine.max_new_tokens": 96}, "engine: recipe: Value error, max_new_tokens 96 leaves no room"),
        (DEMO, {"canary.step": [0.1]}, "unknown key 'canary.step': did you mean 'steps'"),
        (DEMO, {"canary.quality.golden": 3}, "'canary.quality.golden': did you mean 'min_golden'"),
        (DEMO, {"canary.steps": [0.5, 0.1]}, "canary.steps: Value error, the weights [0.5, 0.1] do not increase"),
        (DEMO, {"canary.quality.answer_format": "("}, "is not a regular expression"),
    ],
)
def test_a_wrong_recipe_or_key_is_named_with_the_nearest(name, overrides, says):
    with pytest.raises(ConfigurationError) as error:
        resolve(name, overrides)
    assert says in str(error.value)


@pytest.mark.remedy("the override … does not name a key of the recipe: write it as finetune.steps")
@pytest.mark.remedy("lower engine.max_new_tokens, or raise engine.max_tokens")
@pytest.mark.parametrize(
    ("overrides", "says", "followed"),
    [
        (
            {"finetune.steps.more": 9},
            "does not name a key of the recipe: write it as finetune.steps",
            [{"finetune.steps": 90}],
        ),
        (
            {"engine.max_new_tokens": 96},
            "within max_tokens 96: lower engine.max_new_tokens, or raise engine.max_tokens",
            [{"engine.max_new_tokens": 95}, {"engine.max_new_tokens": 96, "engine.max_tokens": 97}],
        ),
    ],
)
def test_an_override_that_a_message_names_is_taken(overrides, says, followed):
    with pytest.raises(ConfigurationError, match=f"{says}$"):
        resolve(DEMO, overrides)
    for changed in followed:
        assert resolve(DEMO, changed).overrides == changed
