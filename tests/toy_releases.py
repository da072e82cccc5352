"""Two releases to play with: tiny engines, and the policy of a rollout that is over within seconds."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from include.home import PROJECT
from include.laptop.home import python_of

POLICY = {
    "steps": [0.3, 0.6],
    "step_seconds": 1.5,
    "look_seconds": 0.3,
    "min_requests": 40,
    "max_seconds": 60,
    "baseline_requests": 20,
    "baseline_seconds": 3,
    "max_bad_rate": 0.15,
    "quality": {"golden_prompts": 4},
}
_ENGINES = """
import json, sys, tempfile
from pathlib import Path
from include.artifacts.store import Store
from tests.jobs.serving.triton.engine_fixture import commit_engine, make_engine
store = Store(sys.argv[1])
for seed in (1, 2):
    with tempfile.TemporaryDirectory() as folder:
        artifact = commit_engine(store, f"engine-{seed}", make_engine(Path(folder) / "engine", seed))
    print(json.dumps(artifact.model_dump()))
"""


def make_engines(store: str) -> list[dict[str, Any]]:
    """Commit the engines of versions 1 and 2 to a store, and return them as artifacts."""
    command = [str(python_of("serving")), "-c", _ENGINES, store]
    made = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in made.stdout.splitlines()]
