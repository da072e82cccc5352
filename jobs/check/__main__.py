"""`python -m jobs.check`: a curated data set held against the expectations of a suite."""

from __future__ import annotations

from typing import Any

from include.sources.model_folder import refuse_code
from include.specs.check import Spec
from jobs.check.contradictions import require_base, require_consistent, require_room
from jobs.check.preflight import with_preflight
from jobs.common.base_model import read_config
from jobs.common.chat import load_tokenizer
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Validate a curated data set and write the report. Data that fails is reported, not raised.

    Raises:
        ConfigurationError: the suite or the chat template cannot be used; or a stage after the check would refuse the
            recipe, or the base model, whatever the data is.
        DataError: the curated data set was written by another version of curation, or the template cannot render a row.
    """
    config = job.spec.config
    require_consistent(config)
    import dataclasses
    import json

    import pandas as pd

    from jobs.check.tables import ask_heldout, conversations, figures, heldout_table, read_rows, rows_table

    curated, base = job.input("curated"), job.input("base") / "model"
    tokenizer = load_tokenizer(base, config.chat_template)
    model: dict[str, Any] = {}
    if config.training is not None or config.evaluation is not None or config.serving is not None:
        refuse_code(base)
        model = read_config(base)
        require_base(config, base, model, tokenizer)
    train, validation, held_out = (
        read_rows(curated / f"{split}.jsonl") for split in ("train", "validation", "heldout")
    )
    rows = train + validation
    table = rows_table(rows, held_out, conversations(rows, tokenizer))
    evaluated = pd.DataFrame({"id": [row["id"] for row in held_out]})
    if config.evaluation is not None:
        asked = ask_heldout(held_out, tokenizer, model, config.evaluation)
        if config.serving is not None:
            require_room(config.serving, held_out, asked)
        evaluated = heldout_table(held_out, asked, train, tokenizer, model, config.evaluation)
    funnel = json.loads((curated / "funnel.json").read_text(encoding="utf-8"))
    observed = figures(table, funnel, conversations(held_out, tokenizer), config.max_tokens)
    job.event("tables", progress=0.5, rows=len(table), **observed)

    from jobs.check.validate import validate

    findings = validate(
        with_preflight(config, funnel),
        {"rows": table, "heldout": evaluated, "figures": pd.DataFrame([{"id": "data set", **observed}])},
        {"max_tokens": config.max_tokens},
        job.output / "data_docs",
    )
    for item in findings:
        job.event("expectation", success=item.success, message=item.message)
    success = bool(findings) and all(item.success for item in findings)
    result = {
        "success": success,
        "rows": len(table),
        "expectations": [dataclasses.asdict(item) for item in findings],
        "figures": observed,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (job.output / "result.json").write_text(text, encoding="utf-8")
    job.metrics.update(success=success, rows=len(table), failed=sum(not item.success for item in findings))


if __name__ == "__main__":
    main("check", run)
