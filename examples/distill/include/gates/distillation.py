"""The distillation gate: whether enough rows were kept, and the teacher expects them more than all rows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from include.gates import Gate, Limit, Verdict, is_number
from include.model import Model


class Limits(Model):
    """Limits on a distilled data set.

    Attributes:
        min_rows: number of the kept rows.
        max_loss: mean loss of the kept rows over that of all rows. A random choice gives 1; a teacher that has learned
            nothing comes near it.
    """

    min_rows: Annotated[int, Field(ge=1)] = 100
    max_loss: Annotated[float, Field(gt=0, le=1)] = 0.9


def judge(limits: Limits, result: Any) -> Verdict:
    """Return the verdict on a `distilled.json` (`include.specs.distill.Spec`)."""
    found = result if isinstance(result, dict) else {}
    kept, loss, kept_loss = (found.get(key) for key in ("kept", "loss", "kept_loss"))
    if not (is_number(kept) and is_number(loss) and is_number(kept_loss) and loss > 0):
        return Verdict("fail", ("distilled.json lacks its figures: run the DAG again with refresh: [distill]",))
    ratio = kept_loss / loss
    checks = (
        Limit(
            name="rows kept", observed=f"{kept:,}", limit=f"at least {limits.min_rows:,}", kept=kept >= limits.min_rows
        ),
        Limit(
            name="loss of the kept rows over that of all",
            observed=f"{ratio:.3f}",
            limit=f"at most {limits.max_loss:g}",
            kept=ratio <= limits.max_loss,
        ),
    )
    reasons = tuple(f"{check.name}: {check.observed}, limit {check.limit}" for check in checks if not check.kept)
    return Verdict("fail" if reasons else "pass", reasons, {"kept": float(kept), "loss_ratio": ratio}, checks)


GATE = Gate(
    job="distill",
    limits=Limits,
    files=("distilled.json",),
    judge=judge,
    remedy="Give the recipe more rows, or another share to keep (distill.keep); {artifact} holds the kept rows.",
)
