"""Whether a training has the GPUs that it needs, and these the memory: computed before any of them is requested."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from itertools import combinations
from typing import Any, NamedTuple

from pydantic import ValidationError

from include.errors import ConfigurationError
from include.platforms.cluster import Cluster
from include.recipes.resolved import Section
from include.specs.finetune import Config, Lora

_BYTES = {"float32": 4, "bfloat16": 2}
_GIB = 2**30


class Memory(NamedTuple):
    """Bytes that a training needs on each GPU: a lower bound, without buffers and fragmentation.

    Attributes:
        weights, gradients, moments: needed at every step, whatever the rows are; the moments are AdamW's two.
        activations: kept for the backward pass of one micro-batch of rows of `max_tokens` tokens, with the logits.
    """

    weights: float
    gradients: float
    moments: float
    activations: float

    @property
    def state(self) -> float:
        """The part that neither a smaller micro-batch nor shorter rows reduce."""
        return self.weights + self.gradients + self.moments


def require_gpus(sections: Mapping[str, Section | None], cluster: Cluster) -> None:
    """Check that every stage of a resolved recipe has one process for each GPU of its pods.

    Args:
        sections: the recipe's, by stage.

    Raises:
        ConfigurationError: a stage has more processes a node than its size has GPUs, or fewer; or the platform lacks
            its size.
    """
    for stage, section in sections.items():
        if section is None:
            continue
        name = cluster.size_name(section.job, section.size)
        gpus = cluster.size(section.job, section.size).gpus
        config = section.config
        processes = config.get("processes", 1) // config.get("nodes", 1)
        if gpus and gpus != processes:
            raise ConfigurationError(
                f"{stage} runs {_many(processes, 'process')} on a node, and a pod of the size {name} has "
                f"{_many(gpus, 'GPU')}: {_remedy(stage, config, gpus, cluster)}"
            )


def require_memory(config: Config, model: Mapping[str, Any], parameters: int, size: str, gpu_memory: float) -> Memory:
    """Return what a training needs on each GPU.

    Args:
        model: the base model's `config.json`. `parameters`: their number in the base model.
        size: name of the pods' size. `gpu_memory`: of each of their GPUs, in bytes.

    Raises:
        ConfigurationError: `Memory.state` is more than a GPU has. Activations are never a reason: rows can be short,
            and a training that runs out of memory halves its micro-batch.
    """
    memory = training_memory(config, model, parameters)
    if memory.state > gpu_memory:
        raise ConfigurationError(
            f"finetune needs at least {gib(memory.state)} on each GPU (weights {gib(memory.weights)}, gradients "
            f"{gib(memory.gradients)}, AdamW's moments {gib(memory.moments)}: {parameters / 1e9:.2f} billion "
            f"parameters, {config.method} in {config.dtype}, {config.strategy} over "
            f"{_many(config.processes, 'process')}), and one of the size {size} has {gib(gpu_memory)}: "
            f"{' or '.join(_ways(config, model, parameters, gpu_memory)) or 'choose a smaller base model'}"
        )
    return memory


def training_memory(config: Config, model: Mapping[str, Any], parameters: int) -> Memory:
    """Compute what a training needs on each GPU.

    Weights, and for each that is trained a gradient and AdamW's two moments, all in `dtype`; fsdp2 shards them over the
    processes of a node, and keeps frozen weights in bfloat16. Source: S. Rajbhandari et al., "ZeRO: Memory
    Optimizations Toward Training Trillion Parameter Models" (2020), 3.1, for an optimizer without a second copy of the
    weights; nemo-automodel 0.7.0 for the formats.

    Activations are those of a gated block with fused attention, without dropout. Source: V. Korthikanti et al.,
    "Reducing Activation Recomputation in Large Transformer Models" (2022), 4.1, adapted to RMSNorm, grouped keys
    and a gate. The loss is computed in float32. Zero where `model` lacks the keys of such a block.
    """
    dtype_bytes = _BYTES[config.dtype]
    spread = config.strategy == "fsdp2" and config.processes > 1
    shards = config.processes // config.nodes if spread else 1
    trained = parameters if config.lora is None else _adapter(config.lora, model)
    frozen = 0 if config.lora is None else parameters
    return Memory(
        weights=(trained * dtype_bytes + frozen * (min(dtype_bytes, _BYTES["bfloat16"]) if spread else dtype_bytes))
        / shards,
        gradients=trained * dtype_bytes / shards,
        moments=2 * trained * dtype_bytes / shards,
        activations=_activations(
            model, _BYTES["bfloat16"] if spread else dtype_bytes, checkpointing=config.activation_checkpointing
        )
        * config.local_batch_size
        * config.max_tokens,
    )


def gib(number: float) -> str:
    """Return a number of bytes as text."""
    return f"{number / _GIB:.1f} GiB"


def _activations(model: Mapping[str, Any], compute_bytes: int, *, checkpointing: bool) -> float:
    """Return bytes a token, at `compute_bytes` bytes a number.

    Args:
        checkpointing: only the inputs of a block's parts are kept, and all of one block at a time.
    """
    shape = _Shape.of(model)
    if shape is None:
        return 0.0
    # Both norms' inputs and outputs; queries, keys, values and what attention makes of them; gate, up, their product
    # and the gate's activation.
    block = 4 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    # The logits, and in float32 their log-probabilities and gradient.
    logits = shape.vocabulary * (compute_bytes + 2 * _BYTES["float32"])
    if checkpointing:
        return (shape.layers * 4 * shape.hidden + block) * compute_bytes + logits
    return shape.layers * block * compute_bytes + logits


def _adapter(lora: Lora, model: Mapping[str, Any]) -> int:
    """Return the number of an adapter's weights on the linear layers of Llama blocks; 0, a lower bound, for others."""
    shape = _Shape.of(model)
    if shape is None:
        return 0
    linear = {
        "self_attn.q_proj": (shape.hidden, shape.queries),
        "self_attn.k_proj": (shape.hidden, shape.keys),
        "self_attn.v_proj": (shape.hidden, shape.keys),
        "self_attn.o_proj": (shape.queries, shape.hidden),
        "mlp.gate_proj": (shape.hidden, shape.intermediate),
        "mlp.up_proj": (shape.hidden, shape.intermediate),
        "mlp.down_proj": (shape.intermediate, shape.hidden),
    }
    return sum(
        lora.dim * (inputs + outputs)
        for layer in range(shape.layers)
        for name, (inputs, outputs) in linear.items()
        if any(fnmatch(f"model.layers.{layer}.{name}", pattern) for pattern in lora.target_modules)
    )


class _Shape(NamedTuple):
    """Widths of a Llama block; `queries` and `keys` of all heads together."""

    hidden: int
    intermediate: int
    layers: int
    queries: int
    keys: int
    vocabulary: int

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> _Shape | None:
        try:
            heads = model["num_attention_heads"]
            width = model.get("head_dim") or model["hidden_size"] // heads
            return cls(
                hidden=model["hidden_size"],
                intermediate=model["intermediate_size"],
                layers=model["num_hidden_layers"],
                queries=width * heads,
                keys=width * (model.get("num_key_value_heads") or heads),
                vocabulary=model["vocab_size"],
            )
        except (KeyError, TypeError, ZeroDivisionError):
            return None


_SAVING = (("strategy", "fsdp2"), ("method", "lora"), ("dtype", "bfloat16"))
_GPUS = (2, 4, 8, 16)
"""Of one machine."""


def _ways(config: Config, model: Mapping[str, Any], parameters: int, gpu_memory: float) -> list[str]:
    """Return the overrides of which each lets `Memory.state` fit by itself: as few keys as will do, or more GPUs."""

    def fits(changes: Mapping[str, Any]) -> bool:
        kept = config.model_dump(exclude={"lora"} if "method" in changes else set())
        try:
            changed = Config.model_validate({**kept, **changes})
        except ValidationError:
            return False
        return training_memory(changed, model, parameters).state <= gpu_memory

    saving = [(key, value) for key, value in _SAVING if getattr(config, key) != value]
    tried = [[dict(chosen) for chosen in combinations(saving, count)] for count in range(1, len(saving) + 1)]
    fewest: list[dict[str, str]] = next(filter(None, ([one for one in some if fits(one)] for some in tried)), [])
    ways = [f"set {_overrides(changes)}" for changes in fewest]
    more: list[dict[str, Any]] = [{"strategy": "fsdp2", "processes": gpus * config.nodes} for gpus in _GPUS]
    enough = next((one for one in more if one["processes"] > config.processes and fits(one)), None)
    if enough is not None and {"strategy": "fsdp2"} not in fewest:
        gpus = enough["processes"] // config.nodes
        ways.append(f"set {_overrides(enough)} in a size of {gpus} GPUs (sizes.finetune)")
    return ways


def _overrides(changes: Mapping[str, Any]) -> str:
    return " and ".join(f"finetune.{key}: {value}" for key, value in changes.items())


def _remedy(stage: str, config: Mapping[str, Any], gpus: int, cluster: Cluster) -> str:
    nodes = config.get("nodes", 1)
    processes = config.get("processes", 1) // nodes
    fitting = sorted(name for name, size in cluster.sizes.items() if size.gpus == processes)
    ways = [f"set sizes.{stage}: {fitting[0]}"] if fitting else []
    if "processes" in config:
        ways.append(f"set {stage}.processes: {gpus * nodes}")
    return " or ".join(ways) or f"the platform has no size of {_many(processes, 'GPU')}: add one to its cluster.sizes"


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('s') else 's'}"
