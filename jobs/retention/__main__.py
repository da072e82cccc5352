"""`python -m jobs.retention`: plan what of the store to delete; with a plan as input, delete it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from include.artifacts.store import Store
from include.errors import ConfigurationError
from include.retention import PLAN_VALID, Plan, make_plan
from include.specs.retention import Spec
from jobs.common.runtime import Job, main
from jobs.retention.inventory import take_inventory
from jobs.retention.roots import find_roots
from jobs.retention.sweep import sweep


def run(job: Job[Spec]) -> None:
    """Write `plan.json`, or carry one out and write `swept.json` and `spared.json`."""
    plan = None
    if job.spec.inputs.plan is not None:
        plan = Plan.model_validate_json((job.input("plan") / "plan.json").read_bytes())
        _require_valid(plan, job.spec)
    # Before the inventory: what is noted or committed after it was taken is younger than any plan.
    now = datetime.now(UTC)
    store = Store(job.store.root, existing=True)
    inventory = take_inventory(store, lambda artifacts: find_roots(job.spec.config, store, artifacts))
    fresh = make_plan(inventory, job.spec.config.policy, now, store=store.root)
    for problem in fresh.problems:
        job.event("problem", message=problem)
    for retained in fresh.retained:
        job.event("retained", reason=retained.reason, count=retained.count, bytes=retained.bytes)
    if plan is None:
        for deletion in fresh.deletions:
            what = {"kind": deletion.kind, "path": deletion.path}
            job.event("would_delete", **what, bytes=deletion.bytes, reason=deletion.reason)
        job.metrics.update(would_delete=len(fresh.deletions), would_free_bytes=fresh.freed)
        _write(job, "plan.json", fresh.model_dump_json(indent=1))
        return
    result = sweep(store, plan, fresh, job.event)
    job.metrics.update(deleted=len(result.done.deletions), freed_bytes=result.done.freed, spared=len(result.spared))
    _write(job, "swept.json", result.done.model_dump_json(indent=1))
    _write(job, "spared.json", json.dumps(result.spared, indent=1, ensure_ascii=False))


def _require_valid(plan: Plan, spec: Spec) -> None:
    """Raise ConfigurationError where the plan is of another store, or too old to carry out."""
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
