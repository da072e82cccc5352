"""A plan, carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from include.artifacts.store import Store
from include.errors import AnemoneError
from include.retention import Going, Plan


@dataclass(frozen=True)
class Swept:
    """`went` is the plan with what really went; `spared` has {"path", "reason"} of the rest."""

    went: Plan
    spared: list[dict[str, str]]


def sweep(store: Store, plan: Plan, fresh: Plan, report: Callable[..., None]) -> Swept:
    """Let go what `plan` says and `fresh`, which was made just now, says as well.

    A process that dies within leaves every artifact whole or not there; the next sweep goes on.
    """
    still = {(one.kind, one.path) for one in fresh.going}
    gone: list[Going] = []
    spared: list[dict[str, str]] = []
    for one in plan.going:
        reason = None
        if (one.kind, one.path) not in still:
            reason = "it is needed by now, was used again, or is gone"
        else:
            try:
                if not _let_go(store, one, fresh):
                    reason = "it was used just now"
            except (AnemoneError, OSError) as error:
                reason = str(error)
        if reason is None:
            gone.append(one)
            report("went", kind=one.kind, path=one.path, bytes=one.bytes, reason=one.reason)
        else:
            spared.append({"path": one.path, "reason": reason})
            report("spared", kind=one.kind, path=one.path, reason=reason)
    return Swept(plan.model_copy(update={"going": tuple(gone)}), spared)


def _let_go(store: Store, one: Going, fresh: Plan) -> bool:
    if one.kind != "artifact":
        store.remove_path(one.path)
        return True
    return store.remove(one.path, unless_used_after=fresh.policy.floor(fresh.made))
