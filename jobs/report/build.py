"""From the artifacts of a run to its record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from include.gates import read_one_gate
from include.specs.report import Spec
from jobs.report.artifacts import Artifacts
from jobs.report.canary import describe_canary
from jobs.report.data import describe_data
from jobs.report.evaluation import describe_evaluation
from jobs.report.gates import judge_again
from jobs.report.headline import judge
from jobs.report.masking import Mask
from jobs.report.provenance import base_model, describe_chain, describe_versions
from jobs.report.record import Record, Task
from jobs.report.serving import describe_engine, describe_parity
from jobs.report.training import describe_training


def build(spec: Spec) -> Record:
    """Return the record of a run; what cannot be read is named in its `missing`."""
    config = spec.config
    started = datetime.fromisoformat(config.started)
    artifacts = Artifacts(spec.inputs)
    if config.evidence_pending is not None:
        artifacts.missing["rollout"] = (
            "the store was away when the rollout ended; the canary controller keeps its analysis runs, and stores them "
            f"at {config.evidence_pending} once the store takes them: clear the task outcome then"
        )
    curated = artifacts.manifest("curated")
    mask = Mask(curated.config if curated else None)
    candidate = artifacts.json("candidate", "candidate.json") or artifacts.json("registered", "candidate.json") or {}
    # A release judges by the limits under which its candidate was registered, where the registry has them.
    registered = read_one_gate(candidate).get("gates", {})
    names = {task.gate for task in config.tasks if task.gate is not None}
    gates = judge_again(artifacts, {**config.gates, **registered}, mask, names)
    canary = describe_canary(artifacts)
    champion = artifacts.json("champion", "champion.json") or {}
    model = candidate.get("model") or champion.get("model")
    version = candidate.get("version")
    return Record(
        dag=config.dag,
        run_id=config.run_id,
        started=started,
        model=model,
        version=version,
        recipe=candidate.get("recipe") or config.recipe,
        purpose=config.purpose,
        base_model=base_model(artifacts),
        overrides={**_overrides(candidate), **config.overrides},
        verdict=judge(spec, gates, canary, model, version, mask),
        tasks=tuple(Task(task=task.task, state=task.state or "not reached") for task in config.tasks),
        roles=config.roles,
        data=describe_data(artifacts, mask),
        gates=gates,
        training=describe_training(artifacts),
        evaluation=describe_evaluation(artifacts, mask),
        parity=describe_parity(artifacts),
        engine=describe_engine(artifacts),
        canary=canary,
        chain=describe_chain(artifacts, started),
        versions=describe_versions(artifacts),
        missing=artifacts.missing,
    )


def _overrides(candidate: dict[str, Any]) -> dict[str, Any]:
    """Return what the run overrode that made a candidate, which its release keeps."""
    recipe: dict[str, Any] = candidate.get("resolved_recipe") or {}
    return recipe.get("overrides") or {}
