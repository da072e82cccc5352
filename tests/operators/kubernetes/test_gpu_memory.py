"""Whether a training's GPUs are large enough is read from the base model's artifact, before a pod is made."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from include.artifacts.manifest import Provenance
from include.artifacts.store import Store
from include.errors import ConfigurationError
from include.job_plan import JobPlan
from include.platforms.cluster import Cluster
from operators.kubernetes.gpu_memory import require_gpu_memory

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
CLUSTER = Cluster.model_validate(
    {
        "namespace": "n",
        "images": {"jobs": "jobs:1"},
        "sizes": {
            "default": {"cpu": "1", "memory": "1Gi"},
            "gpu1": {"cpu": "1", "memory": "1Gi", "gpus": 1, "gpu_memory": "40Gi"},
        },
        "stages": {"default": "default", "finetune": "gpu1"},
    }
)


@pytest.fixture
def plan(tmp_path):
    store = Store(f"file://{tmp_path}")

    def commit(name, files, **metrics):
        now = datetime.now(UTC)
        made = {"wall_seconds": 0, "cpu_seconds": 0, "peak_rss_bytes": 0, "host": "h", "python": "3"}
        with store.attempt(name) as attempt:
            for path, text in files.items():
                (attempt.files / path).parent.mkdir(parents=True, exist_ok=True)
                (attempt.files / path).write_text(text)
            attempt.commit(
                job="import_model", code="0", metrics=metrics, provenance=Provenance(started=now, finished=now, **made)
            )
        return store.uri(name)

    def planned(parameters=8_030_261_248, **config):
        known = {} if parameters is None else {"parameters": parameters}
        inputs = {
            "base": commit("base-1", {"model/config.json": json.dumps(SHAPE)}, **known),
            "data": commit("data-1", {"train.jsonl": "", "validation.jsonl": ""}),
        }
        given = {"steps": 10, "learning_rate": 1e-5, "max_tokens": 2048, "chat_template": "x", "local_batch_size": 1}
        return JobPlan.prepare("finetune", config={**given, **config}, inputs=inputs, store=store)

    return planned


def test_what_fits_is_told_in_the_log(plan):
    line = require_gpu_memory(plan(dtype="bfloat16"), CLUSTER, None)
    assert 'sizing gpu_memory=40Gi weights="15.0 GiB"' in line and line.endswith("fits=True")
    assert require_gpu_memory(plan(dtype="bfloat16"), CLUSTER, "default") is None


def test_what_cannot_fit_is_refused(plan):
    with pytest.raises(ConfigurationError, match="at least 119.7 GiB on each GPU .* one of the size gpu1 has 40.0 GiB"):
        require_gpu_memory(plan(method="sft"), CLUSTER, None)


def test_of_a_base_model_that_nobody_counted_nothing_is_asked(plan):
    assert require_gpu_memory(plan(parameters=None, method="sft"), CLUSTER, None) is None
