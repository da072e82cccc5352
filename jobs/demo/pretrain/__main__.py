"""`python -m jobs.demo.pretrain --spec URI`: the demo's base model as a Hugging Face folder."""

from __future__ import annotations

import json
from statistics import fmean
from typing import TYPE_CHECKING

from include.specs.demo.pretrain import Spec
from jobs.common.runtime import Job, main

if TYPE_CHECKING:
    from jobs.demo.pretrain.model import Step

_REPORT_EVERY = 25


def run(job: Job[Spec]) -> None:
    """Train tokenizer and model; write `model/` and `loss.jsonl`."""
    import torch

    from jobs.common.torch_threads import use_threads
    from jobs.demo.pretrain.card import model_card
    from jobs.demo.pretrain.corpus import documents
    from jobs.demo.pretrain.model import batches, build_model, train
    from jobs.demo.pretrain.tokenizer import train_tokenizer

    config = job.spec.config
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(documents(config.seed), config.vocab_size)
    model = build_model(config, tokenizer)
    parameters = model.num_parameters()
    job.event("model", parameters=parameters, vocabulary=len(tokenizer), threads=use_threads(parameters))
    steps = []
    for step in train(model, batches(documents(config.seed), tokenizer, config), config):
        steps.append(step)
        if step.step % _REPORT_EVERY == 0 or step.step == config.steps:
            job.event("step", progress=step.step / config.steps, step=step.step, loss=_recent(steps))
    folder = job.output / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = model_card(config, parameters=parameters, vocabulary=len(tokenizer))
    (folder / "README.md").write_text(card, encoding="utf-8")
    curve = "".join(json.dumps(step._asdict()) + "\n" for step in steps)
    (job.output / "loss.jsonl").write_text(curve, encoding="utf-8")
    job.metrics.update(parameters=parameters, vocabulary=len(tokenizer), final_loss=_recent(steps))


def _recent(steps: list[Step]) -> float:
    return fmean(step.loss for step in steps[-_REPORT_EVERY:])


if __name__ == "__main__":
    main("pretrain", run)
