"""Text of a data set as a reader of the report may see it: without personal data, shortened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from include.specs.curate import Pii
from jobs.common.pii import redact, redact_value


class Mask:
    """Shows text without personal data, shortened.

    The kinds are those that the curation of this data set searches for, also where the recipe leaves them in the data:
    a report is passed on to more people than a data set.
    """

    def __init__(self, curation: Mapping[str, Any] | None) -> None:
        self._kinds = Pii.model_validate((curation or {}).get("pii", {})).kinds

    def text(self, text: str, limit: int = 400) -> str:
        """Return at most `limit` characters."""
        # The cut comes last: half of a number is no longer recognised as one.
        shown = redact(text, self._kinds)[0]
        return shown if len(shown) <= limit else shown[: limit - 1] + "…"

    def value(self, value: Any, limit: int = 400) -> str:
        """Return a JSON value as text; text stays as it is."""
        clean = redact_value(value, self._kinds)
        return self.text(clean if isinstance(clean, str) else json.dumps(clean, ensure_ascii=False), limit)
