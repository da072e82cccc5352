"""The plugin of Airflow's web UI: pages that show artifacts, and links to them from the tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from operators.links import ARTIFACTS_PREFIX, EvidenceLink, JudgedArtifactLink, MadeArtifactLink, ReportLink


async def artifact_pages(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Serve a request by `plugins.artifact_pages`.

    That is imported at the first request: every task's process loads this plugin, and importing FastAPI would cost each
    of them two CPU-seconds.
    """
    from plugins.artifact_pages import app

    await app(scope, receive, send)


class AnemonePlugin(AirflowPlugin):
    """Registers the pages and the links."""

    name = "anemone"
    fastapi_apps = [{"app": artifact_pages, "url_prefix": ARTIFACTS_PREFIX, "name": "Anemone artifacts"}]
    operator_extra_links = [MadeArtifactLink(), JudgedArtifactLink(), EvidenceLink(), ReportLink()]
