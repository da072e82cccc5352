"""Template fields whose texts are no templates: sections, limits and policies of a recipe stay as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class LiteralFields:
    """A base of operators, beside BaseOperator: in `literal_fields` Airflow resolves references, and renders nothing.

    Such a field stays one of the operator's `template_fields`: these are what Airflow searches for XComArgs, to wire
    the DAG, and what its web UI shows. But a text in it may be a chat template, a regular expression or a file's name
    that ends like a template's, and reaches the task as it was given.
    """

    literal_fields: ClassVar[frozenset[str]] = frozenset()

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        # Not `render_template_fields`: of a mapped task Airflow calls this one alone.
        if parent is self:
            for name in self.literal_fields:
                setattr(self, name, _resolved(getattr(self, name), context))
            template_fields = [name for name in template_fields if name not in self.literal_fields]
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)  # type: ignore[misc]


def _resolved(value: Any, context: Context) -> Any:
    """Return a value with every XComArg and DagParam in it replaced by what it stands for."""
    if isinstance(value, dict):
        return {key: _resolved(one, context) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(one, context) for one in value]
    # As Airflow tells them, whose base class for them is not public; a path has such a method of its own.
    resolve = None if isinstance(value, os.PathLike) else getattr(value, "resolve", None)
    return value if resolve is None else resolve(context)
