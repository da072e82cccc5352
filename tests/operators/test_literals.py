"""What Airflow makes of the fields of our operators before a task starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, BaseOperator, Param, XComArg

from include.recipes import resolve
from include.recipes.resolved import Section
from operators import CanaryRolloutOperator, GateSensor, LocalJobOperator, stage
from operators.literals import LiteralFields

TEXTS = {
    "chat_template": "{% generation %}{{ bos_token }}{{ messages[0] }}",
    "unfinished": "{% if",
    "pattern": "^{{[^}]+}}$",
    "files": ["prompts.json", "start.sh", "pod.yaml", "page.html", "query.sql"],
    "number": 3,
    "nothing": None,
}
"""What Jinja would stumble over, or take for the names of files."""


def context(**params):
    pulled = {("plan", "finetune"): {"template": "{{ kept }}"}, ("made", "return_value"): "file:///store/x.json"}

    def xcom_pull(task_ids, key="return_value", **_):
        return pulled[task_ids, key]

    return {
        "ti": SimpleNamespace(xcom_pull=xcom_pull, task_id="t", map_index=-1),
        "dag_run": SimpleNamespace(conf={}),
        "params": {"model": "kubectl", **params},
    }


@pytest.fixture
def dag():
    with DAG("some", params={"model": Param("kubectl")}) as dag:
        yield dag


def rendered(operator, **params):
    operator.render_template_fields(context(**params))
    return operator


def test_a_literal_section_breaks_nothing(dag):
    section = {"job": "finetune", "config": TEXTS}
    operator = rendered(stage("finetune", section, inputs={"data": "{{ params.uri }}"}), uri="file:///store/data.json")
    assert operator.section == section
    assert operator.inputs == {"data": "file:///store/data.json"}


def test_a_recipes_own_section_reaches_the_task_with_its_chat_template(dag):
    section = resolve("demo/0.8M_lora_cpu").section("finetune")
    assert "{%" in section.config["chat_template"]
    for given in (section.document(), section):
        operator = rendered(stage(f"finetune_{type(given).__name__}", given))
        assert operator.stage_section == section


def test_references_in_a_section_are_resolved_and_what_they_bring_is_no_template(dag):
    plan, made = BaseOperator(task_id="plan"), BaseOperator(task_id="made")
    section = {
        "job": "finetune",
        "config": {"sub": XComArg(plan, "finetune"), "list": [made.output], "model": dag.param("model"), **TEXTS},
    }
    operator = stage("finetune", section)
    assert operator.upstream_task_ids == {"plan", "made"}
    assert rendered(operator, model="{{ odd }}").section["config"] == {
        "sub": {"template": "{{ kept }}"},
        "list": ["file:///store/x.json"],
        "model": "{{ odd }}",
        **TEXTS,
    }
    whole = rendered(stage("whole", XComArg(plan, "finetune")))
    assert whole.section == {"template": "{{ kept }}"}


def test_sections_of_a_mapped_stage_are_no_templates_either(dag):
    sections = [{"job": "finetune", "config": TEXTS}, {"job": "finetune", "config": {}}]
    mapped = LocalJobOperator.partial(task_id="finetune").expand(section=sections)
    found = context()
    found["dag"], found["ti"].map_index = dag, 0
    mapped.render_template_fields(found)
    assert found["task"].section == sections[0]


def test_limits_and_policies_are_no_templates_and_what_a_dag_names_still_is(dag):
    gate = GateSensor(task_id="gate", gate="evaluation", artifact="{{ params.uri }}", gates={"evaluation": TEXTS})
    assert rendered(gate, uri="file:///store/x").gates == {"evaluation": TEXTS}
    assert gate.artifact == "file:///store/x"
    release = CanaryRolloutOperator(
        task_id="canary", kind="release", target="{{ params.model }}", policy={"quality": TEXTS}, drill="{{ 'slow' }}"
    )
    assert rendered(release).policy == {"quality": TEXTS}
    assert (release.target, release.drill) == ("kubectl", "slow")


def test_a_subclass_that_names_no_literal_field_has_templates_as_any_operator(dag):
    class Named(LiteralFields, BaseOperator):
        template_fields = ("target",)

        def __init__(self, *, target, **more):
            super().__init__(**more)
            self.target = target

    assert rendered(Named(task_id="named", target="{{ params.model }}")).target == "kubectl"


def test_a_section_of_a_pod_is_not_read_from_a_file(dag, monkeypatch):
    """KubernetesPodOperator, which ours are, too, takes every text that ends in .yaml for a file of templates."""
    from operators.kubernetes.pod_operator import PodJobOperator

    class AnywherePodJobOperator(PodJobOperator):
        cluster = SimpleNamespace(
            connection="kubernetes_default",
            in_cluster=None,
            namespace="n",
            schedule_timeout_seconds=1,
            startup_timeout_seconds=1,
        )

    section = Section(job="ingest", config={"source": "/inbox/rows.json", **TEXTS}).document()
    operator = AnywherePodJobOperator(task_id="ingest", section=section, inputs={"data": "file:///store/x.yaml"})
    operator.resolve_template_files()
    assert rendered(operator).section == section
    assert operator.inputs == {"data": "file:///store/x.yaml"}
