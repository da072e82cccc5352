"""The evidence says which code decided."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.artifacts.store import Store
from include.release.rollouts import RolloutRequest, RolloutStatus
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Rollout

ROLLOUT = Rollout(
    request=RolloutRequest(id="back", kind="rollback", target="kubectl"),
    status=RolloutStatus(id="back", kind="rollback", target="kubectl", state="finished", outcome="promoted"),
    sequence=1,
    asked=datetime(2026, 3, 1, tzinfo=UTC),
)


@pytest.mark.parametrize("changed", ["controller.py", "analysis/judge.py", "state/evidence.py"])
def test_the_code_of_every_room_is_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    package = tmp_path / "canary"
    shutil.copytree(Path(evidence.__file__).parents[1], package)
    monkeypatch.setattr(evidence, "__file__", str(package / "state" / "evidence.py"))
    codes = []
    for number in range(2):
        store = Store(f"file://{tmp_path}/store{number}")
        evidence.commit(store.root, ROLLOUT, tmp_path / "none")
        _, name = Store.of(evidence.evidence_uri(store.root, "back"))
        manifest = store.manifest(name)
        assert manifest is not None
        codes.append(manifest.code)
        with (package / changed).open("a") as source:
            source.write("# changed\n")
    assert codes[0] != codes[1]
