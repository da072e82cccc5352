"""`python -m jobs.distill`: the rows of a data set that a teacher model expects most."""

from __future__ import annotations

import json
from statistics import fmean

from include.errors import DataError
from include.specs.distill import Spec
from jobs.common.causal_lm import Conversation, answer_logits, load_model
from jobs.common.chat import encode, load_tokenizer
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Score every row by the teacher's loss on its answer; write the rows with the lowest losses."""
    from torch.nn.functional import cross_entropy

    config = job.spec.config
    folder = job.input("teacher") / "model"
    tokenizer = load_tokenizer(folder, config.chat_template)
    # Not splitlines(): a row's text may hold line separators of Unicode.
    text = (job.input("rows") / "data.jsonl").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line]
    rows: dict[int, Conversation] = {}
    for number, line in enumerate(lines):
        row = json.loads(line)
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        conversation = Conversation(*encode(tokenizer, messages))
        if len(conversation.ids) <= config.max_tokens:
            rows[number] = conversation
    if not rows:
        raise DataError(f"none of the {len(lines)} rows fits in max_tokens {config.max_tokens}: raise it in the recipe")

    numbers = list(rows)
    scored = answer_logits(
        load_model(folder),
        list(rows.values()),
        pad_id=tokenizer.pad_token_id or 0,
        batch_size=config.batch_size,
        on_batch=lambda done: job.event("scored", progress=done / len(numbers), rows=done),
    )
    losses = {numbers[index]: cross_entropy(logits, answer).item() for index, logits, answer in scored}
    kept = sorted(
        sorted(losses, key=lambda number: (losses[number], number))[: max(1, round(config.keep * len(losses)))]
    )

    (job.output / "data.jsonl").write_text("".join(lines[number] + "\n" for number in kept), encoding="utf-8")
    result = {
        "rows": len(lines),
        "too_long": len(lines) - len(rows),
        "kept": len(kept),
        "loss": fmean(losses.values()),
        "kept_loss": fmean(losses[number] for number in kept),
    }
    (job.output / "distilled.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    job.metrics.update(result)


if __name__ == "__main__":
    main("distill", run)
