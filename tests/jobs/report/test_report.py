"""The job as a process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.jobs.report.world import MODEL, World


def test_leaves_record_page_and_card(world: World, run_job: Callable[..., Any]) -> None:
    world.data()
    world.model()
    spec = world.spec("customize", MODEL, failed="evaluation_gate", message="fail")
    config = spec.config.model_dump(mode="json")
    done = run_job("report", config, {role: world.made[role] for role in MODEL})
    assert sorted(file.path for file in done.manifest.files) == ["MODEL_CARD.md", "report.html", "report.json"]
    record = json.loads((done.folder / "report.json").read_text())
    assert record["verdict"]["line"] in (done.folder / "report.html").read_text()
    assert set(done.manifest.inputs) == set(MODEL)
    assert "verdict=" in done.stdout
