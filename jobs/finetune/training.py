"""The whole job: from verified inputs to the files of the artifact."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import DataError
from include.sources.model_folder import refuse_code
from include.specs.finetune import Config, Spec
from jobs.common.base_model import read_config, require_embeddings, require_positions
from jobs.common.chat import load_tokenizer
from jobs.common.runtime import Job
from jobs.finetune import checkpoints
from jobs.finetune.curve import Curve
from jobs.finetune.dataset import encode_file
from jobs.finetune.launcher import launch
from jobs.finetune.node_group import join
from jobs.finetune.plan import Plan, Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def finetune(job: Job[Spec]) -> None:
    """Train, and fill `job.output` and `job.metrics`.

    Raises:
        ConfigurationError: the chat template or the lengths do not fit the base model.
        MemoryExhaustedError: even the smallest micro-batch needs more memory than there is.
        DataError: a row cannot be trained on.
        DivergenceError: NaN, Inf, or nothing learned.
        StoppedError: SIGTERM came; the state was saved.
        TryAgainError: a rank hung, or was killed, or a node is gone; the next try resumes.
    """
    with join(job.spec.config) as nodes:
        plan = nodes.agree(partial(_prepare, job), lambda plan: checkpoints.describe(plan.resume))
        resumed_from = checkpoints.steps(plan.resume)
        result = launch(plan, job.store, job.event, nodes)
        if nodes.rank == 0:
            _write_output(job, result, resumed_from=resumed_from)


def _prepare(job: Job[Spec]) -> Plan:
    """Read and encode the inputs, and restore the last checkpoint: every node has copies of its own."""
    config, base, data = job.spec.config, job.input("base") / "model", job.input("data")
    model = read_config(base)
    refuse_code(base)
    require_positions(model, config.max_tokens, "finetune")
    tokenizer = load_tokenizer(base, config.chat_template)
    require_embeddings(model, tokenizer)
    plan = Plan(
        spec=job.spec,
        base=base,
        rows=job.scratch / "rows",
        scratch=job.scratch,
        micro_batch=config.local_batch_size,
        resume=_resume(job),
    )
    for part in ("train", "validation"):
        count = encode_file(data / f"{part}.jsonl", tokenizer, config.max_tokens, plan.rows / part)
        if count.rows < config.processes:
            raise DataError(
                f"{part}.jsonl has {count.rows} rows for {config.processes} processes: "
                f"give it more rows, or lower finetune.processes to {count.rows}"
            )
        job.event("rows", part=part, rows=count.rows, tokens=count.tokens, longest=count.longest)
    return plan


def _write_output(job: Job[Spec], result: Result, *, resumed_from: int) -> None:
    config, base = job.spec.config, job.input("base") / "model"
    curve = Curve.read(result.curve)
    curve.check_learned(read_config(base)["vocab_size"])
    if config.method == "lora":
        _write_adapter(result.best, job.output / "adapter", base_digest=job.spec.inputs.base.digest)
    else:
        _write_model(result.best, job.output / "model", load_tokenizer(base, config.chat_template))
    curve.write(job.output)
    job.metrics.update(_figures(config, curve, result, resumed_from=resumed_from))


def _resume(job: Job[Spec]) -> Path | None:
    folder = checkpoints.restore(job.store, job.spec.output.name, job.scratch / "resumed", job.event)
    if folder is not None:
        job.event("resumed", step=checkpoints.steps(folder))
    return folder


def _figures(config: Config, curve: Curve, result: Result, *, resumed_from: int) -> dict[str, Any]:
    assert curve.best is not None, "the last step is validated"
    return {
        "final_loss": curve.final_loss,
        "best_validation_loss": curve.best["loss"],
        "best_step": curve.best["step"],
        "steps": len(curve.training),
        "tokens": sum(point["tokens"] for point in curve.training),
        "tokens_per_second": round(result.tokens / result.seconds, 1),
        "parameters_trained": result.parameters_trained,
        "processes": config.processes,
        "threads": result.threads,
        "local_batch_size": result.micro_batch,
        "resumed_from": resumed_from,
    }


def _write_adapter(best: Path, target: Path, *, base_digest: str) -> None:
    target.mkdir()
    for name in ADAPTER_FILES:
        shutil.copyfile(best / "model" / name, target / name)
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    # AutoModel writes the folder that the base was read from, which differs from try to try.
    config["base_model_name_or_path"] = f"sha256:{base_digest}"
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_model(best: Path, target: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    shutil.copytree(best / "model" / "consolidated", target)
    tokenizer.save_pretrained(str(target))
