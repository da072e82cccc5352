"""Links from a task's page in the web UI to its artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from include.artifacts.store import split_uri

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

ARTIFACTS_PREFIX = "/anemone/artifacts"
"""Path of the artifacts plugin, below Airflow's own address."""

EVIDENCE_KEY = "evidence"
"""XCom of a rollout's task: URI of the evidence that the canary controller committed, or commits later."""

EVIDENCE_PENDING_KEY = "evidence_pending"
"""XCom of a rollout's task: that same URI, where the evidence was not in the store at the end of the task."""

REPORT_PAGE = "report.html"
"""File of the artifact that the job `report` makes."""


class MadeArtifactLink(BaseOperatorLink):
    """The artifact that the task returned."""

    name = "Artifact"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key="return_value")
        return _page(uri) if uri else ""


class ReportLink(BaseOperatorLink):
    """The report of the run, which the task made."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key="return_value")
        return f"{_page(uri)}files/{REPORT_PAGE}" if uri else ""


class JudgedArtifactLink(BaseOperatorLink):
    """The artifact that a gate judged."""

    name = "Judged artifact"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return _page(cast(Any, operator).artifact)


class EvidenceLink(BaseOperatorLink):
    """Every analysis run of the rollout that the task started, and its outcome."""

    name = "Evidence"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key=EVIDENCE_KEY)
        return _page(uri) if uri else ""


def _page(uri: str) -> str:
    return f"{ARTIFACTS_PREFIX}/{quote(split_uri(uri)[1])}/"
