"""`python -m jobs.check`: a curated data set held against the expectations of a suite."""

from __future__ import annotations

from include.specs.check import Spec
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Validate a curated data set and write the report. Data that fails is reported, not raised.

    Raises:
        ConfigurationError: the suite or the chat template cannot be used.
        DataError: the curated data set was written by another version of curation, or the template cannot render a row.
    """
    import dataclasses
    import json

    import pandas as pd

    from jobs.check.tables import figures, read_rows, rows_table
    from jobs.common.chat import load_tokenizer

    config = job.spec.config
    curated = job.input("curated")
    tokenizer = load_tokenizer(job.input("base") / "model", config.chat_template)
    train, validation, held_out = (
        read_rows(curated / f"{split}.jsonl") for split in ("train", "validation", "heldout")
    )
    table = rows_table(train + validation, held_out, tokenizer)
    funnel = json.loads((curated / "funnel.json").read_text(encoding="utf-8"))
    observed = figures(table, funnel, held_out, tokenizer, config.max_tokens)
    job.event("tables", progress=0.5, rows=len(table), **observed)

    from jobs.check.validate import validate

    findings = validate(
        config.suite,
        {"rows": table, "figures": pd.DataFrame([{"id": "data set", **observed}])},
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
