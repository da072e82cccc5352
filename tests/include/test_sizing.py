from __future__ import annotations

import re
from typing import Any

import pytest

from include.errors import ConfigurationError
from include.platforms import load_platform
from include.platforms.cluster import Cluster, Size, amount
from include.recipes import recipe_names, resolve
from include.recipes.resolved import Section
from include.sizing import require_gpus, require_memory, training_memory
from include.specs.finetune import Config

GIB = 2**30
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
PARAMETERS = 7_615_616_512
A100 = 40 * GIB


def given(changes: dict[str, Any]) -> dict[str, Any]:
    usual = {"steps": 10, "learning_rate": 1e-5, "max_tokens": 2048, "chat_template": "x", "global_batch_size": 64}
    return {**usual, "local_batch_size": 1, **changes}


def config(**changes: Any) -> Config:
    return Config(**given(changes))


@pytest.fixture
def eks(monkeypatch):
    """Both platforms of Amazon's, by name."""
    for name in ("ANEMONE_STORE", "ANEMONE_S3_REGION"):
        monkeypatch.setenv(name, "s3://bucket/anemone")
    for name in ("JOBS", "SERVING", "NEMO"):
        monkeypatch.setenv(f"ANEMONE_{name}_IMAGE", "image@sha256:" + "0" * 64)
    load_platform.cache_clear()
    yield {name: load_platform(name).cluster for name in ("eks-a100", "eks-h100")}
    load_platform.cache_clear()


def test_every_number_that_is_kept_is_counted():
    memory = training_memory(config(method="sft"), QWEN_7B, PARAMETERS)
    assert memory.state == 16 * PARAMETERS
    half = training_memory(config(method="sft", dtype="bfloat16"), QWEN_7B, PARAMETERS)
    assert half.state == memory.state / 2


def test_fsdp2_spreads_the_state_over_the_processes_of_a_node():
    whole = training_memory(config(method="sft"), QWEN_7B, PARAMETERS)
    for processes, nodes, shards in ((8, 1, 8), (16, 2, 8), (1, 1, 1)):
        spread = config(method="sft", strategy="fsdp2", processes=processes, nodes=nodes)
        assert training_memory(spread, QWEN_7B, PARAMETERS).state == whole.state / shards
    copied = config(method="sft", processes=8)
    assert training_memory(copied, QWEN_7B, PARAMETERS).state == whole.state


def test_an_adapter_alone_has_gradients_and_moments():
    # As peft counts them: r × (in + out) of each of the seven linear layers of a block.
    block = (3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3
    memory = training_memory(config(dtype="bfloat16"), QWEN_7B, PARAMETERS)
    assert memory.gradients == 2 * 16 * block * 28
    assert memory.weights == 2 * PARAMETERS + memory.gradients
    some = training_memory(config(lora={"target_modules": ["*.q_proj"]}), QWEN_7B, PARAMETERS)
    assert some.gradients == 4 * 16 * (3584 + 3584) * 28
    # Of a model that is built otherwise nothing is known, and the bound stays below what it needs.
    assert training_memory(config(), {"n_embd": 768}, PARAMETERS).gradients == 0


def test_rows_and_recomputing_change_the_activations_only():
    one = training_memory(config(dtype="bfloat16"), QWEN_7B, PARAMETERS)
    two = training_memory(config(dtype="bfloat16", local_batch_size=2), QWEN_7B, PARAMETERS)
    assert (two.activations, two.state) == (2 * one.activations, one.state)
    less = training_memory(config(dtype="bfloat16", activation_checkpointing=True), QWEN_7B, PARAMETERS)
    assert less.state == one.state and less.activations < one.activations / 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"method": "sft"},
            r"at least 113\.5 GiB on each GPU \(weights 28\.4 GiB, gradients 28\.4 GiB, AdamW's moments 56\.7 GiB: "
            r"7\.62 billion parameters, sft in float32, ddp over 1 process\), and one of the size gpu8 has 40\.0 GiB: "
            r"set finetune\.method: lora or set finetune\.strategy: fsdp2 and finetune\.processes: 4 in a size of 4 "
            r"GPUs \(sizes\.finetune\)$",
        ),
        (
            {"method": "sft", "processes": 8, "dtype": "bfloat16"},
            r": set finetune\.strategy: fsdp2 or set finetune\.method: lora$",
        ),
        ({"method": "sft", "strategy": "fsdp2", "processes": 2}, r"56\.7 GiB on .*or set finetune\.dtype: bfloat16 or"),
    ],
)
@pytest.mark.parametrize("gpu_memory", [A100, 16 * GIB, 12 * GIB])
@pytest.mark.remedy("set … in a size of … GPUs (sizes.finetune)")
def test_what_cannot_fit_is_refused_with_the_numbers_and_remedies_that_help(changes, says, gpu_memory):
    with pytest.raises(ConfigurationError, match=says if gpu_memory == A100 else "on each GPU") as refused:
        require_memory(config(**changes), QWEN_7B, PARAMETERS, "gpu8", gpu_memory)
    remedies = str(refused.value).rpartition("GiB: ")[2].split(" or ")
    assert remedies
    for remedy in remedies:
        followed = dict(re.findall(r"finetune\.(\w+): (\w+)", remedy))
        require_memory(Config.model_validate({**given(changes), **followed}), QWEN_7B, PARAMETERS, "gpu8", gpu_memory)
        if gpus := re.search(r"in a size of (\d+) GPUs \(sizes\.finetune\)", remedy):
            sizes = {"new": Size(cpu="1", memory="1Gi", gpus=int(gpus[1]))}
            finetune = Section(job="finetune", config={"processes": int(followed["processes"]), "nodes": 1}, size="new")
            require_gpus({"finetune": finetune}, CLUSTER.model_copy(update={"sizes": sizes}))


def test_what_no_size_holds_needs_another_model():
    with pytest.raises(ConfigurationError, match="has 0.1 GiB: choose a smaller base model$"):
        require_memory(config(), QWEN_7B, PARAMETERS, "gpu8", GIB / 10)


def test_long_rows_are_no_reason_since_a_smaller_micro_batch_is_tried():
    big = config(dtype="bfloat16", local_batch_size=64)
    memory = require_memory(big, QWEN_7B, PARAMETERS, "gpu8", A100)
    assert memory.activations > A100 > memory.state


CLUSTER = Cluster.model_validate(
    {
        "namespace": "n",
        "images": {"jobs": "jobs:1"},
        "sizes": {
            "default": {"cpu": "1", "memory": "1Gi"},
            "gpu1": {"cpu": "1", "memory": "1Gi", "gpus": 1},
            "gpu8": {"cpu": "8", "memory": "8Gi", "gpus": 8},
        },
        "stages": {"default": "default", "finetune": "gpu1"},
    }
)


def sections(
    finetune: dict[str, int], size: str | None = None, evaluate: str | None = None
) -> dict[str, Section | None]:
    return {
        "finetune": Section(job="finetune", config=finetune, size=size),
        "evaluate": Section(job="evaluate", config={}, size=evaluate),
        "heldout": None,
    }


@pytest.mark.parametrize(
    ("finetune", "size"),
    [
        ({"processes": 1, "nodes": 1}, None),
        ({"processes": 8, "nodes": 1}, "gpu8"),
        ({"processes": 16, "nodes": 2}, "gpu8"),
        ({"processes": 4, "nodes": 1}, "default"),
    ],
)
def test_a_gpu_a_process_or_none_at_all_is_right(finetune, size):
    require_gpus(sections(finetune, size), CLUSTER)


@pytest.mark.parametrize(
    ("finetune", "size", "evaluate", "says"),
    [
        (
            {"processes": 8, "nodes": 1},
            None,
            None,
            r"finetune runs 8 processes on a node, and a pod of the size gpu1 has 1 GPU: set sizes\.finetune: gpu8 or "
            r"set finetune\.processes: 1$",
        ),
        (
            {"processes": 1, "nodes": 1},
            "gpu8",
            None,
            r"1 process on a node, .* gpu8 has 8 GPUs: set sizes\.finetune: gpu1",
        ),
        ({"processes": 4, "nodes": 2}, "gpu8", None, r"2 processes on a node.*: set finetune\.processes: 16"),
        ({"processes": 1, "nodes": 1}, None, "gpu8", r"evaluate runs 1 process .* set sizes\.evaluate: gpu1"),
        ({"processes": 1, "nodes": 1}, "gpu9", None, "size 'gpu9', which this platform lacks"),
    ],
)
@pytest.mark.remedy("set sizes.…: …", "set ….processes: …")
def test_too_many_processes_and_idle_gpus_are_refused(finetune, size, evaluate, says):
    with pytest.raises(ConfigurationError, match=says) as refused:
        require_gpus(sections(finetune, size, evaluate), CLUSTER)
    if remedy := re.search(r"set sizes\.(\w+): (\w+)", str(refused.value)):
        sizes = {"finetune": size, "evaluate": evaluate, remedy[1]: remedy[2]}
        require_gpus(sections(finetune, sizes["finetune"], sizes["evaluate"]), CLUSTER)
    if remedy := re.search(r"set finetune\.processes: (\d+)", str(refused.value)):
        require_gpus(sections({**finetune, "processes": int(remedy[1])}, size, evaluate), CLUSTER)


@pytest.mark.remedy("add one to its cluster.sizes")
def test_a_size_that_is_lacking_is_added_and_named():
    sizes = {name: size for name, size in CLUSTER.sizes.items() if name != "gpu1"}
    idle = sections({"processes": 8, "nodes": 1}, "gpu8", "gpu8")
    with pytest.raises(ConfigurationError, match=r"has no size of 1 GPU: add one to its cluster\.sizes$"):
        require_gpus(idle, CLUSTER.model_copy(update={"sizes": sizes}))
    added = CLUSTER.model_copy(update={"sizes": {**sizes, "small": Size(cpu="1", memory="1Gi", gpus=1)}})
    with pytest.raises(ConfigurationError, match=r": set sizes\.evaluate: small$"):
        require_gpus(idle, added)
    require_gpus(sections({"processes": 8, "nodes": 1}, "gpu8", "small"), added)


@pytest.mark.parametrize("recipe", [name for name in recipe_names("finetune") if "gpu" in name])
def test_every_recipe_for_gpus_has_them_and_their_memory(eks, recipe):
    found = resolve(recipe)
    finetune = Config.model_validate(found.section("finetune").config)
    for cluster in eks.values():
        require_gpus(found.stages, cluster)
        name = found.section("finetune").size or "gpu1"
        gpu_memory = amount(cluster.size("finetune", name).gpu_memory)
        memory = require_memory(finetune, QWEN_7B, PARAMETERS, name, gpu_memory)
        # What the bound does not count (buffers, gathered layers, the context of CUDA) has a quarter.
        assert memory.state + memory.activations < 0.75 * A100


@pytest.mark.parametrize("recipe", [name for name in recipe_names("finetune") if "cpu" in name])
def test_a_recipe_of_one_process_gets_one_gpu(eks, recipe):
    found = resolve(recipe)
    processes = found.section("finetune").config["processes"]
    for cluster in eks.values():
        if processes == 1:
            require_gpus(found.stages, cluster)
            assert cluster.size("finetune", found.section("finetune").size).gpus == 1
        else:
            with pytest.raises(ConfigurationError, match="has 1 GPU"):
                require_gpus(found.stages, cluster)
