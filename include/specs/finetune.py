"""Fine-tune a base model with NeMo AutoModel: LoRA or full SFT, one process or several."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from include.model import Model
from include.specs.base import NOT_IDENTITY, Artifact, FileContent, JobSpec
from include.specs.base import Inputs as BaseInputs


class Lora(Model):
    """`dim` is the adapter's rank; the update is scaled by alpha / dim.

    Attributes:
        target_modules: wildcards over module names; `*_proj` is every linear layer of a Llama block.
        init: distribution of A at the start (B starts at zero, so the model starts as the base).
    """

    dim: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] = ("*_proj",)
    init: Literal["uniform", "xavier"] = "uniform"


class Config(Model):
    """Hyper-parameters. Batch sizes in rows, lengths in tokens, schedules in optimizer steps.

    Attributes:
        min_learning_rate: where the warm-up starts and the cosine ends.
        local_batch_size: rows that a rank holds in memory at a time. No part of the name: it changes the order in
            which a step's losses are summed and nothing else, and a try that runs out of memory continues with half.
        processes: ranks of the training, each on one GPU (or one CPU core); they share `global_batch_size`. No part
            of the name either: rows, order and steps are the same, so a run can continue with fewer GPUs, or with more.
        max_tokens: longest conversation; a longer row is an error, never cut.
        strategy: `fsdp2` shards the model over the processes, and with several nodes over those of each node, which
            then all hold it once: checkpoints need no shared file system.
        activation_checkpointing: compute a block's activations again in the backward pass instead of keeping them: a
            third more work for a fraction of the memory. The numbers are the same.
        dtype: of weights, gradients and AdamW's moments. fsdp2 over several processes computes in bfloat16 either way.
        nodes: machines that share the `processes` evenly; more than one on a cluster only.
        validate_every: steps between validations; the last step is validated always.
        checkpoint_every: steps between checkpoints; what a killed run loses at the most.
        hang_seconds: a rank of which nothing is heard for so long is taken to hang (or for 20 of its steps, where they
            take longer; five times as long until the first step). Writing a checkpoint into the scratch folder has to
            fit in; committing it to the store may take any time in which it makes progress.
        chat_template: Jinja; `{% generation %}` marks what is trained on.
    """

    method: Literal["lora", "sft"] = "lora"
    lora: Lora | None = None
    seed: int = 0
    steps: Annotated[int, Field(ge=1)]
    global_batch_size: Annotated[int, Field(ge=1)] = 32
    local_batch_size: Annotated[int, Field(ge=1), NOT_IDENTITY] = 32
    learning_rate: Annotated[float, Field(gt=0)]
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Annotated[int, Field(ge=8)]
    chat_template: Annotated[str, FileContent("templates")]
    dtype: Literal["float32", "bfloat16"] = "float32"
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    activation_checkpointing: Annotated[bool, NOT_IDENTITY] = False
    processes: Annotated[int, Field(ge=1), NOT_IDENTITY] = 1
    nodes: Annotated[int, Field(ge=1), NOT_IDENTITY] = 1
    validate_every: Annotated[int, Field(ge=1)] = 50
    checkpoint_every: Annotated[int, Field(ge=1), NOT_IDENTITY] = 50
    hang_seconds: Annotated[float, Field(gt=0), NOT_IDENTITY] = 600

    @model_validator(mode="before")
    @classmethod
    def _lora_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method", "lora") == "lora" and values.get("lora") is None:
            return {**values, "lora": {}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.method == "sft" and self.lora is not None:
            raise ValueError("finetune.lora belongs to the method lora: remove it, or set finetune.method: lora")
        if self.global_batch_size % (self.local_batch_size * self.processes):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of local_batch_size × processes "
                f"({self.local_batch_size} × {self.processes})"
            )
        if self.processes % self.nodes:
            raise ValueError(f"processes {self.processes} cannot be shared evenly by {self.nodes} nodes")
        if self.strategy == "fsdp2" and self.processes == self.nodes > 1:
            raise ValueError(
                f"strategy fsdp2 shards within a node, and {self.nodes} nodes with one process each leave nothing to "
                "shard: set finetune.strategy: ddp, or raise finetune.processes"
            )
        if self.activation_checkpointing and self.strategy == "ddp" and self.processes > 1:
            raise ValueError(
                "activation_checkpointing of several processes needs fsdp2: set finetune.strategy: fsdp2, or "
                "finetune.activation_checkpointing: false"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leaves nothing of {self.steps} steps: lower finetune.warmup_steps, "
                "or raise finetune.steps"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: lower "
                "finetune.min_learning_rate"
            )
        return self


class Inputs(BaseInputs):
    """`base` holds `model/`; `data` holds `train.jsonl` and `validation.jsonl` with {"id", "messages"} a line."""

    base: Artifact
    data: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `adapter/` (Hugging Face PEFT) for LoRA or `model/` (Hugging Face) for SFT, the best checkpoint by
    validation loss; `loss.jsonl`, one {"step", "loss", "learning_rate", "grad_norm", "tokens"} a line, and
    `validation.jsonl`, one {"step", "loss"} a line. Losses are means over the answers' tokens, in nats.
    """

    memory_key: ClassVar[str | None] = "finetune.local_batch_size"
    job: Literal["finetune"] = "finetune"
