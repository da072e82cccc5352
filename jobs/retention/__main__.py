"""`python -m jobs.retention`: what of the store may go; with a plan as input, let it go."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from include.artifacts.store import Store
from include.errors import ConfigurationError
from include.retention import PLAN_VALID, Plan, decide
from include.specs.retention import Spec
from jobs.common.runtime import Job, main
from jobs.retention.needs import needs
from jobs.retention.stock import take_stock
from jobs.retention.sweep import sweep


def run(job: Job[Spec]) -> None:
    """Write `plan.json`, or carry one out and write `swept.json` and `spared.json`."""
    plan = None
    if job.spec.inputs.plan is not None:
        plan = Plan.model_validate_json((job.input("plan") / "plan.json").read_bytes())
        _require_valid(plan, job.spec)
    # Asked first: what is noted or committed after this look is younger than any plan.
    now = datetime.now(UTC)
    store = Store(job.store.root, existing=True)
    stock = take_stock(store, lambda held: needs(job.spec.config, store, held))
    fresh = decide(stock, job.spec.config.policy, now, store=store.root)
    for sentence in fresh.trouble:
        job.event("trouble", message=sentence)
    for one in fresh.staying:
        job.event("stays", reason=one.reason, count=one.count, bytes=one.bytes)
    if plan is None:
        for one in fresh.going:
            job.event("would_go", kind=one.kind, path=one.path, bytes=one.bytes, reason=one.reason)
        job.metrics.update(would_go=len(fresh.going), would_free_bytes=fresh.freed)
        _write(job, "plan.json", fresh.model_dump_json(indent=1))
        return
    result = sweep(store, plan, fresh, job.event)
    job.metrics.update(went=len(result.went.going), freed_bytes=result.went.freed, spared=len(result.spared))
    _write(job, "swept.json", result.went.model_dump_json(indent=1))
    _write(job, "spared.json", json.dumps(result.spared, indent=1, ensure_ascii=False))


def _require_valid(plan: Plan, spec: Spec) -> None:
    if plan.store != spec.output.store:
        raise ConfigurationError(f"the plan is of {plan.store}, this store is {spec.output.store}: make a plan of it")
    age = datetime.now(UTC) - plan.made
    if age > PLAN_VALID:
        raise ConfigurationError(
            f"the plan was made {age.total_seconds() / 60:.0f} minutes ago, and only one of the last "
            f"{PLAN_VALID.total_seconds() / 60:.0f} is carried out: make a new one; nothing was deleted"
        )


def _write(job: Job[Spec], name: str, text: str) -> None:
    (job.output / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("retention", run)
