"""`python -m jobs.evaluate`: the base zero-shot and few-shot, the tuned model and the champion on the same rows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from include.specs.base import Artifact
from include.specs.evaluate import Spec
from jobs.common.causal_lm import load_model, longest_sequence
from jobs.common.chat import Message, load_tokenizer
from jobs.common.heldout import Row, read_rows
from jobs.common.runtime import Job, main

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from jobs.evaluate.measure import Scored


def run(job: Job[Spec]) -> None:
    """Score every model, and write the results."""
    config, inputs = job.spec.config, job.spec.inputs
    data = job.input("data")
    rows = read_rows(data / "heldout.jsonl", config.rows)
    training = read_rows(data / "train.jsonl")
    job.event("held_out", rows=len(rows), asked=config.rows)

    from jobs.common.few_shot import choose_examples
    from jobs.evaluate.results import write_results

    champion = _champion(job)
    evaluation = _Evaluation(job, rows, models=3 if champion is None else 4)
    scores: dict[str, list[Scored]] = {}

    folder = job.input("base") / "model"
    base = load_model(folder)
    tokenizer = load_tokenizer(folder, config.chat_template)
    scores["base_zero_shot"] = evaluation.measure("base_zero_shot", base, tokenizer)
    short = [row for row, score in zip(rows, scores["base_zero_shot"], strict=True) if not score.too_long]
    examples = choose_examples(
        tokenizer,
        training,
        short or rows,
        count=config.few_shot,
        max_prompt_tokens=longest_sequence(base) - config.max_new_tokens,
        seed=config.seed,
    )
    scores["base_few_shot"] = evaluation.measure("base_few_shot", base, tokenizer, examples)
    del base

    scores["tuned"] = evaluation.measure_merged("tuned", job.input("tuned") / "model")
    if champion is not None:
        if champion.digest == inputs.tuned.digest:
            scores["champion"] = scores["tuned"]
        else:
            scores["champion"] = evaluation.measure_merged("champion", job.open(champion) / "model")

    shots = sum(message["role"] == "assistant" for message in examples)
    results = write_results(job.output, rows, scores, shots)
    for name, figures in reversed(results["models"].items()):
        if figures["rows_too_long"]:
            job.event("too_long", model=name, rows=figures["rows_too_long"], of=len(rows))
        job.event("result", model=name, rows=len(rows), **figures)
        job.metrics.update({f"{name}_{key}": figures[key] for key in ("exact_match", "rouge_l", "heldout_loss")})
    job.metrics["rows"] = len(rows)


def _champion(job: Job[Spec]) -> Artifact | None:
    """Return the champion's model from the record of the job `champion`, or None where there is no champion."""
    if job.spec.inputs.champion is None:
        return None
    record = json.loads((job.input("champion") / "champion.json").read_text(encoding="utf-8"))
    return None if record["artifact"] is None else Artifact.model_validate(record["artifact"])


class _Evaluation:
    """The measuring of several models on the same rows, with their common progress."""

    def __init__(self, job: Job[Spec], rows: Sequence[Row], models: int) -> None:
        self._job = job
        self._rows = rows
        self._models = models
        self._done = 0

    def measure_merged(self, name: str, folder: Path) -> list[Scored]:
        """Measure a merged model, with the chat template that it is served with."""
        model = load_model(folder)
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else self._job.spec.config.chat_template
        return self.measure(name, model, load_tokenizer(folder, text))

    def measure(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Message] = (),
    ) -> list[Scored]:
        from jobs.evaluate.measure import measure

        config = self._job.spec.config
        started = time.monotonic()

        def report(answered: int) -> None:
            progress = (self._done + answered / len(self._rows)) / self._models
            self._job.event("answered", progress=round(progress, 4), model=name, rows=answered)

        scores = measure(
            model,
            tokenizer,
            self._rows,
            examples=examples,
            max_tokens=config.max_tokens,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            on_batch=report,
        )
        self._done += 1
        self._job.event("measured", model=name, seconds=time.monotonic() - started)
        return scores


if __name__ == "__main__":
    main("evaluate", run)
