"""`python -m jobs.engine`: a merged model built into an inference engine, and compared with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError, DataError
from include.specs.engine import Spec
from jobs.common.causal_lm import load_model, longest_sequence, require_safetensors
from jobs.common.chat import encode_prompt, load_tokenizer
from jobs.common.engine_runtime import text
from jobs.common.generation import Generated, answer_within, end_ids, room_after
from jobs.common.heldout import encode_rows
from jobs.common.runtime import Job, main
from jobs.engine.builder import Engine, engine_builder
from jobs.engine.golden import pair_answers, write_golden
from jobs.engine.parity import agreement, divergence, require
from jobs.engine.reference import Reference, read_reference
from jobs.engine.speed import tokens_per_cpu_second
from jobs.engine.tokenization_parity import probe_strings, require_same_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPEED_BATCHES = (1, 16)


def run(job: Job[Spec]) -> None:
    """Build the engine, compare its tokenization and its predictions with the merged model's, and measure its speed."""
    config = job.spec.config
    reference = read_reference(job)
    folder = job.input("merged") / "model"
    tokenizer = _load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, row["messages"]) for row in reference.rows]
    _require_room(reference, prompts, config.max_tokens)
    conversations = encode_rows(tokenizer, reference.rows, config.max_tokens, config.parity.prompts, stage="engine")
    job.event("held_out", rows=len(prompts), asked=config.rows)

    builder = engine_builder(config.builder, config.compute_type)
    job.event("building", progress=0.1, builder=config.builder, compute_type=config.compute_type)
    build = builder.build(folder, job.output / "engine")
    _write_json(job.output / "build.json", build)
    job.event("built", progress=0.5, version=build["version"])

    merged = load_model(folder, "float32")
    ends = end_ids(merged, tokenizer)
    positions = longest_sequence(merged)
    _require_positions(positions, config.max_tokens)
    _write_text_files(job, folder, tokenizer, ends)
    runtime_text = text.load(job.output)
    asked = (row["messages"][:-1] for row in reference.rows)
    compared = require_same_tokens(runtime_text, tokenizer, probe_strings(tokenizer), asked)
    job.event("text_proven", progress=0.6, conversations=compared)
    job.metrics["same_tokens"] = compared

    engine = builder.open(job.output / "engine", runtime_text)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    difference = divergence(merged, engine, conversations, pad_id)
    del merged
    job.event("compared", progress=0.7, **difference._asdict())

    limits = [room_after(prompt, config.max_new_tokens, config.max_tokens) for prompt in prompts]
    answers = _answer(job, engine, prompts, limits, positions, ends)
    reach = min(reference.max_tokens, positions)
    rooms = [room_after(prompt, reference.max_new_tokens, reach) for prompt in prompts]
    pairs = pair_answers(reference, answers, rooms, runtime_text)
    figures = agreement(len(conversations), difference, pairs)
    job.metrics.update(figures._asdict())
    require(figures, config)
    _write_json(job.output / "parity.json", figures._asdict())
    write_golden(job.output / "golden.jsonl", reference, pairs, answers, runtime_text)

    most = max(limits)
    _measure_speed(
        job, engine, [prompt for prompt, limit in zip(prompts, limits, strict=True) if limit == most], most, ends
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the merged model's tokenizer with its own template, after the checks that need no slow imports."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: the artifact holds no model folder; give one of a merge")
    require_safetensors(folder)
    if not (folder / text.TEMPLATE).is_file():
        raise DataError(
            f"{folder} holds no {text.TEMPLATE}, so the model's prompts are unknown: run customize again with "
            "refresh: [merge]"
        )
    return load_tokenizer(folder, (folder / text.TEMPLATE).read_text(encoding="utf-8"))


def _require_room(reference: Reference, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    rooms = [room_after(prompt, reference.max_new_tokens, reference.max_tokens) for prompt in prompts]
    longest = max(range(len(prompts)), key=lambda number: len(prompts[number]) + rooms[number])
    needed = len(prompts[longest]) + rooms[longest]
    if needed > max_tokens:
        raise ConfigurationError(
            f"max_tokens: held-out row {reference.rows[longest]['id']} has a prompt of {len(prompts[longest])} tokens, "
            f"which with the {rooms[longest]} new ones that the evaluation allowed is over {max_tokens}: run release "
            f"with the override engine.max_tokens: {needed}"
        )


def _require_positions(positions: int, max_tokens: int) -> None:
    if max_tokens > positions:
        raise ConfigurationError(
            f"max_tokens: {max_tokens} is more than the model's {positions} positions: run release with the override "
            f"engine.max_tokens: {positions}"
        )


def _write_text_files(job: Job[Spec], folder: Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
    for name in (text.TOKENIZER, text.TEMPLATE):
        shutil.copyfile(folder / name, job.output / name)
    settings = {
        "end_ids": list(ends),
        "max_tokens": job.spec.config.max_tokens,
        "max_new_tokens": job.spec.config.max_new_tokens,
        "special_tokens": tokenizer.special_tokens_map,
    }
    _write_json(job.output / text.GENERATION, settings)


def _answer(
    job: Job[Spec],
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    positions: int,
    ends: Sequence[int],
) -> list[Generated]:
    config, reported = job.spec.config, 0

    def report(done: int) -> None:
        nonlocal reported
        if done - reported >= len(prompts) / 5 or done == len(prompts):
            reported = done
            job.event("answered", progress=round(0.7 + 0.2 * done / len(prompts), 4), rows=done)

    def answer(asked: Sequence[Sequence[int]], limit: int, on_batch: Callable[[int], None]) -> list[Generated]:
        return engine.greedy(asked, max_new_tokens=limit, end_ids=ends, batch_size=config.batch_size, on_batch=on_batch)

    return answer_within(
        answer, prompts, limits, max_new_tokens=config.max_new_tokens, positions=positions, on_batch=report
    )


def _measure_speed(
    job: Job[Spec], engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int]
) -> None:
    for batch_size in _SPEED_BATCHES:
        speed = tokens_per_cpu_second(
            engine, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, end_ids=ends
        )
        job.metrics[f"tokens_per_cpu_second_batch_{batch_size}"] = round(speed, 1)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("engine", run)
