"""Whether a training fits into its GPUs' memory: computed from its artifacts, before a pod is created."""

from __future__ import annotations

from include.events import format_event
from include.job_plan import JobPlan
from include.platforms.cluster import Cluster, amount
from include.sizing import gib, require_memory
from include.specs.finetune import Spec
from operators.store import store_of


def require_gpu_memory(plan: JobPlan, cluster: Cluster, wanted: str | None) -> str | None:
    """Return a line for the log: what a training needs of each GPU.

    Args:
        wanted: the size that the recipe asks for, if it does.

    Returns:
        None for any other job, and where the platform or the base model's artifact lacks the figures.

    Raises:
        ConfigurationError: the training needs more than a GPU has (`include.sizing`).
    """
    spec = plan.spec
    size = cluster.size(spec.job, wanted)
    if not isinstance(spec, Spec) or not size.gpus or size.gpu_memory is None:
        return None
    store, base = store_of(spec.inputs.base.uri)
    manifest = store.manifest(base)
    parameters = manifest.metrics.get("parameters") if manifest is not None else None
    if not isinstance(parameters, int):
        return None
    model = store.read_json(base, "model/config.json")
    name = cluster.size_name(spec.job, wanted)
    memory = require_memory(spec.config, model, parameters, name, amount(size.gpu_memory))
    figures = {
        "gpu_memory": size.gpu_memory,
        "weights": gib(memory.weights),
        "gradients": gib(memory.gradients),
        "moments": gib(memory.moments),
        "longest_rows": gib(memory.activations),
        "fits": memory.state + memory.activations <= amount(size.gpu_memory),
    }
    return format_event("sizing", figures)
