"""From a task in the web UI to the artifact behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from include.artifacts.store import split_uri

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

ARTIFACTS_PREFIX = "/anemone/artifacts"
"""Where the artifacts plugin serves, below Airflow's own address."""

EVIDENCE_KEY = "evidence"
"""XCom of a rollout's task: URI of the artifact that the canary controller committed."""

REPORT_PAGE = "report.html"
"""Of the artifact that the job `report` makes."""


class MadeArtifactLink(BaseOperatorLink):
    """The artifact that the task returned."""

    name = "Artifact"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key="return_value")
        return _page(uri) if uri else ""


class ReportLink(BaseOperatorLink):
    """The page of the run, which the task made."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key="return_value")
        return f"{_page(uri)}files/{REPORT_PAGE}" if uri else ""


class JudgedArtifactLink(BaseOperatorLink):
    """The artifact that a gate judged."""

    name = "Judged artifact"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        return _page(operator.artifact)


class EvidenceLink(BaseOperatorLink):
    """Every look of the rollout that the task started, and its verdict."""

    name = "Evidence"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = XCom.get_value(ti_key=ti_key, key=EVIDENCE_KEY)
        return _page(uri) if uri else ""


def _page(uri: str) -> str:
    return f"{ARTIFACTS_PREFIX}/{quote(split_uri(uri)[1])}/"
