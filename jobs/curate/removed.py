"""What is written of rows that were removed: where, why, and the row, shortened and without personal data."""

from __future__ import annotations

import json
import re
from typing import Any

from include.specs.curate import Pii
from jobs.curate.pii import redact, redact_value
from jobs.curate.rows import Removed

MAX_CHARACTERS = 2000
"""A longer row is shown as the start of its JSON text."""

_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def record(removed: Removed, pii: Pii) -> dict[str, Any]:
    """{"file", "line", "reason", "detail", "row"} of a removed row."""
    line = removed.line
    kinds = () if pii.action == "keep" else pii.kinds
    if line.raw is not None:
        row: Any = redact(_ESCAPED.sub(lambda match: chr(int(match[1], 16)), line.raw), kinds)[0]
    else:
        row = redact_value(line.value, kinds)
    shown = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    if len(shown) > MAX_CHARACTERS:
        row = shown[:MAX_CHARACTERS] + "…"
    detail = redact(removed.detail, kinds)[0]
    return {"file": line.file, "line": line.number, "reason": removed.reason, "detail": detail, "row": row}
