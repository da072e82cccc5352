"""Carrying out a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from include.artifacts.store import Store
from include.errors import AnemoneError
from include.retention import Deletion, Plan


@dataclass(frozen=True)
class Sweep:
    """`done` is the plan with the deletions that were done; `spared` has {"path", "reason"} of the others."""

    done: Plan
    spared: list[dict[str, str]]


def sweep(store: Store, plan: Plan, fresh: Plan, report: Callable[..., None]) -> Sweep:
    """Carry out the deletions of `plan` that are also in `fresh`, a plan that was made just now.

    A process that dies on the way leaves every artifact whole or deleted; the next sweep completes the work.

    Args:
        report: takes the name of an event, and its fields by keyword.
    """
    confirmed = {(deletion.kind, deletion.path) for deletion in fresh.deletions}
    done: list[Deletion] = []
    spared: list[dict[str, str]] = []
    for deletion in plan.deletions:
        what = {"kind": deletion.kind, "path": deletion.path}
        if (deletion.kind, deletion.path) not in confirmed:
            reason: str | None = "it is needed now, was used again, or is gone"
        else:
            reason = _delete(store, deletion, fresh)
        if reason is None:
            done.append(deletion)
            report("deleted", **what, bytes=deletion.bytes, reason=deletion.reason)
        else:
            spared.append({"path": deletion.path, "reason": reason})
            report("spared", **what, reason=reason)
    return Sweep(plan.model_copy(update={"deletions": tuple(done)}), spared)


def _delete(store: Store, deletion: Deletion, fresh: Plan) -> str | None:
    """Delete one artifact or path; return why not where that did not work."""
    try:
        if deletion.kind != "artifact":
            store.remove_path(deletion.path)
        elif not store.remove(deletion.path, unless_used_after=fresh.policy.cutoff(fresh.made)):
            return "it was used just now"
    except (AnemoneError, OSError) as error:
        return str(error)
    return None
