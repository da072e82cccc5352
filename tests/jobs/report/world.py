"""Runs told by real artifacts: small ones, in the shapes that the jobs write."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from include.artifacts.manifest import InputEntry, Manifest, Provenance
from include.artifacts.store import Store
from include.release.rollouts import CanaryPolicy, LiveRelease, Note, Release, RolloutRequest, RolloutStatus
from include.specs.base import Artifact
from include.specs.report import Spec
from jobs.evaluate.measure import Scored
from jobs.evaluate.results import write_results
from jobs.serving.canary.analysis.judge import Arm, Evidence, Generation
from jobs.serving.canary.analysis.runs import AnalysisLog, Heading
from jobs.serving.canary.state.records import Rollout
from jobs.serving.durably import DiskThread

HOSTILE = """</script><script>alert("x")</script> "quoted" & 'single' <img src=x onerror=alert(1)>"""
STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
CUSTOMIZE = ("recipe", "base", "ingest", "curate", "check", "data_quality_gate", "finetune", "merge", "evaluate")
CUSTOMIZE += ("evaluation_gate", "register")
RELEASE = ("plan", "candidate", "inputs", "engine", "canary", "promote")
ROLES = {
    "customize": (
        *("data", "heldout", "base", "champion", "curated", "checked", "tuned", "merged", "evaluation"),
        "registered",
    ),
    "release": ("candidate", "engine", "promoted", "rollout"),
}
GATES = {"data_quality_gate": "data_quality", "evaluation_gate": "evaluation"}
POLICY = CanaryPolicy(steps=(0.1, 0.5), step_seconds=4, min_requests=20, max_bad_rate=0.05)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class World:
    """Commits what the jobs of one run would have left."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made: dict[str, Artifact] = {}
        self._numbers = count()

    def commit(
        self,
        role: str,
        job: str,
        files: dict[str, str] | Callable[[Path], Any],
        inputs: tuple[str, ...] = (),
        minutes: float = 1,
        cost: float | None = None,
        **record: Any,
    ) -> Artifact:
        """Made `minutes` after the run's start (before it, where that is negative), for `cost` dollars."""
        name = f"{job}-{next(self._numbers)}"
        finished = STARTED + timedelta(minutes=minutes)
        with self.store.attempt(name) as attempt:
            if callable(files):
                files(attempt.files)
            else:
                for path, text in files.items():
                    (attempt.files / path).parent.mkdir(parents=True, exist_ok=True)
                    (attempt.files / path).write_text(text, encoding="utf-8")
            manifest, _ = attempt.commit(
                job=job,
                code="c0de" * 16,
                inputs={key: InputEntry(uri=self.made[key].uri, digest=self.made[key].digest) for key in inputs},
                provenance=Provenance(
                    started=finished - timedelta(seconds=10),
                    finished=finished,
                    wall_seconds=10,
                    cpu_seconds=8,
                    peak_rss_bytes=2**28,
                    cost=cost,
                    host="test",
                    python="3.11.7",
                    packages={"torch": "2.13.0"},
                    git_sha="ab" * 20,
                    git_dirty=False,
                ),
                **record,
            )
        self.made[role] = Artifact(uri=self.store.uri(name), digest=manifest.content_digest)
        return self.made[role]

    def manifest(self, role: str) -> Manifest:
        manifest = self.store.manifest(self.made[role].uri.rpartition("/")[2])
        assert manifest is not None
        return manifest

    def data(self, text: str = "show the logs", leaked: int = 0) -> None:
        """Ten rows read, seven kept; removed rows say `text`."""
        self.commit("base", "import_model", {"model/config.json": "{}"}, minutes=-60, config={"source": "org/base"})
        self.commit("data", "ingest", {"data.jsonl": ""})
        removed = [
            {"file": "data.jsonl", "line": 2, "reason": "broken_json", "detail": "not valid JSON", "row": f'{{"{text}'},
            {"file": "data.jsonl", "line": 5, "reason": "exact_duplicate", "detail": "same as data.jsonl, line 1",
             "row": {"prompt": text, "completion": "x"}},
            {"file": "data.jsonl", "line": 9, "reason": "exact_duplicate", "detail": "same as data.jsonl, line 1",
             "row": {"prompt": text, "completion": "y"}},
        ]  # fmt: skip
        funnel = {
            "read": 10,
            "kept": 7,
            "stages": [
                {"stage": "read", "rows": 9, "removed": {"broken_json": 1}},
                {"stage": "exact_duplicate", "rows": 7, "removed": {"exact_duplicate": 2}},
            ],
            "removed": {"broken_json": 1, "exact_duplicate": 2},
            "redacted": {"email": 1},
            "splits": {"train": 5, "validation": 2, "heldout": 4},
        }
        self.commit(
            "curated",
            "curate",
            {"funnel.json": json.dumps(funnel), "removed.jsonl": jsonl(removed)},
            inputs=("data",),
            config={"pii": {"action": "keep", "kinds": ["email", "phone"]}},
        )
        expectation = {"name": "leaked", "observed": leaked / 10, "limit": "at most 5.00%", "success": not leaked}
        expectation["message"] = f"leaked: {leaked} of 10 rows ({leaked / 10:.2%}), limit at most 5.00% ({text})"
        result = {"success": not leaked, "rows": 10, "expectations": [expectation], "figures": {}}
        self.commit("checked", "check", {"result.json": json.dumps(result)}, inputs=("curated", "base"))

    def model(self, text: str = "get pods", right: int = 8, champion: int | None = None, too_long: int = 0) -> None:
        """Trained, merged and evaluated on ten rows; `right` and `champion` of them answered rightly.

        The last `too_long` rows are so for the tuned model.
        """
        loss = [{"step": step, "loss": 2 / step, "learning_rate": 1e-3, "grad_norm": 1, "tokens": 9} for step in (1, 2)]
        self.commit(
            "tuned",
            "finetune",
            {"loss.jsonl": jsonl(loss), "validation.jsonl": jsonl([{"step": 2, "loss": 0.5}])},
            inputs=("base", "curated"),
            cost=12.345,
            config={"method": "lora", "lora": {"dim": 4, "alpha": 8}, "steps": 2, "learning_rate": 0.001},
        )
        parity = {"prompts": 4, "positions": 40, "max_logit_difference": 1e-5, "mean_kl": 1e-9, "top1_agreement": 1.0}
        self.commit("merged", "merge", {"parity.json": json.dumps(parity)}, inputs=("base", "tuned", "curated"))
        version = "1" if champion is not None else None
        record = {"model": "toy", "version": version, "artifact": None}
        self.commit("champion", "champion", {"champion.json": json.dumps(record)})

        def scored(rightly: bool, answer: str) -> Scored:
            return Scored(answer, True, False, int(rightly), float(rightly), 0.01 if rightly else 3.0, 5)

        numbers = range(10)
        rows = [
            {
                "id": f"{number:016x}",
                "label": f"kind {number % 3}",
                "messages": [{"role": "user", "content": f"{text} {number}"}, {"role": "assistant", "content": text}],
            }
            for number in numbers
        ]
        models = {
            "base_zero_shot": [scored(False, "at the") for _ in numbers],
            "base_few_shot": [scored(False, "") for _ in numbers],
            "tuned": [scored(number < right, text if number < right else "wrong") for number in numbers],
        }
        for number in numbers[10 - too_long :]:
            models["tuned"][number] = Scored("wro", False, True, 0, 0.0, None, 0)
        if champion is not None:
            models["champion"] = [scored(number >= 10 - champion, text) for number in numbers]
        self.commit(
            "evaluation",
            "evaluate",
            lambda folder: write_results(folder, rows, models, 4),
            inputs=("base", "merged", "curated", "champion"),
        )

    def registered(self) -> None:
        record = {"model": "toy", "version": "2", "champion_version": None, "metrics": {}}
        self.commit("registered", "register", {"candidate.json": json.dumps(record)}, minutes=2)

    def candidate(self, **gates: dict[str, Any]) -> None:
        """Looked up, in a run after the one that made it."""
        roles = ("data", "curated", "checked", "base", "tuned", "merged", "evaluation", "champion")
        record = {
            "model": "toy",
            "version": "2",
            "champion_version": "1",
            "recipe": "demo/toy",
            "resolved_recipe": {"name": "demo/toy", "overrides": {"canary.steps": [0.1], "engine.rows": 5}},
            "gates": gates,
            "inputs": {role: self.made[role].model_dump() for role in roles},
        }
        self.commit("candidate", "candidate", {"candidate.json": json.dumps(record)}, minutes=5)

    def engine(self) -> None:
        parity = {"prompts": 4, "positions": 40, "mean_kl": 1e-6, "top1_agreement": 1.0, "rows": 10, "same_text": 1.0}
        parity |= {"merged_exact_match": 0.8, "engine_exact_match": 0.8, "lost": 0, "won": 0, "score_loss": 0.0}
        parity |= {"score_loss_upper": 0.1}
        build = {"builder": "ctranslate2", "version": "4.8.5", "compute_type": "int8", "arch": "x86_64", "isa": "AVX2"}
        self.commit(
            "engine",
            "engine",
            {"parity.json": json.dumps(parity), "build.json": json.dumps(build), "engine/model.bin": "x" * 2048},
            inputs=("merged", "evaluation"),
            minutes=6,
            metrics={"tokens_per_cpu_second_batch_1": 9000.5, "tokens_per_cpu_second_batch_16": 20000.0},
        )

    def rollout(self, tmp_path: Path, slow: int = 0, drill: str = "none") -> None:
        """Three analysis runs, judged by the canary's own judge and committed as its controller does."""
        from jobs.serving.canary.state import evidence

        engine = self.made["engine"]
        release = Release(model="toy", version="2", engine=engine)
        request = RolloutRequest(
            id="r-1", kind="release", target="toy", release=release, expected_champion="1", policy=POLICY, drill=drill
        )
        path = tmp_path / "r-1.looks.jsonl"
        disk = DiskThread()
        log = AnalysisLog(path, Heading(rollout="r-1", policy=POLICY), disk)
        for number in (1, 2, 3):
            part = Generation(
                key="boot:1",
                step=0,
                weight=0.1,
                champion=Arm(finished=90 * number, sampled=90 * number, bad=number),
                canary=Arm(finished=10 * number, slow=slow * number, sampled=10 * number),
            )
            last = asyncio.run(
                log.append(0, Evidence(step=0, elapsed=number, step_elapsed=number, generations=(part,)))
            )
        disk.close()
        live = LiveRelease(name="toy-v1", release=release.model_copy(update={"version": "1"}), since=STARTED)
        reasons = last.reasons if last.action == "roll_back" else ()
        status = RolloutStatus(
            id="r-1",
            kind="release",
            target="toy",
            state="finished",
            name="toy-v2",
            outcome="rolled_back" if reasons else "promoted",
            reasons=reasons,
            figures=last.figures,
            champion=live,
            notes=(Note(time=STARTED, state="step", message=f"10% of the traffic {HOSTILE}"),),
        )
        rollout = Rollout(request=request, status=status, sequence=1, asked=STARTED + timedelta(minutes=7))
        evidence.commit(self.store.root, rollout, path)
        uri = evidence.evidence_uri(self.store.root, "r-1")
        manifest = self.store.manifest(uri.rpartition("/")[2])
        assert manifest is not None
        self.made["rollout"] = Artifact(uri=uri, digest=manifest.content_digest)

    def stranger(self, failed: bool = False) -> Spec:
        """The report of a DAG that nobody here knows: rows, what was made of them, and a gate that is the house's."""
        expectation = {"name": "leaked", "observed": 0.2 * failed, "limit": "at most 5.00%", "success": not failed}
        expectation["message"] = f"leaked: {expectation['observed']}, limit at most 5.00%"
        result = {"success": not failed, "rows": 10, "expectations": [expectation], "figures": {}}
        self.commit("lessons", "distill", {"data.jsonl": ""}, config={"keep": 0.5}, cost=0.25)
        self.commit("marks", "check", {"result.json": json.dumps(result)}, inputs=("lessons",))
        return Spec.model_validate(
            {
                "job": "report",
                "config": {
                    "dag": "teach",
                    "run_id": "manual__1",
                    "started": STARTED.isoformat(),
                    "tasks": [
                        {"task": "distill", "state": "success"},
                        {"task": "exam", "state": "failed" if failed else "success", "gate": "data_quality"},
                    ],
                    "roles": ["marks", "lessons", "diploma"],
                },
                "inputs": {role: self.made[role].model_dump() for role in ("marks", "lessons")},
                "output": {"store": self.store.root, "name": "report-1", "code": "0"},
            }
        )

    def spec(
        self, dag: str, roles: tuple[str, ...], failed: str | None = None, message: str | None = None, **config: Any
    ) -> Spec:
        """The report of a run that made `roles` and ended in the task `failed`."""
        names = CUSTOMIZE if dag == "customize" else RELEASE
        state, tasks = "success", []
        for name in names:
            if name == failed:
                tasks.append({"task": name, "state": "failed", "message": message, "gate": GATES.get(name)})
                state = "upstream_failed"
            else:
                tasks.append({"task": name, "state": state, "gate": GATES.get(name)})
        return Spec.model_validate(
            {
                "job": "report",
                "config": {
                    "dag": dag,
                    "run_id": "manual__1",
                    "started": (STARTED + timedelta(minutes=4 if dag == "release" else 0)).isoformat(),
                    "tasks": tasks,
                    "recipe": "demo/toy",
                    "purpose": "toy requests",
                    "roles": ROLES[dag],
                    "rollout": "canary" if dag == "release" else None,
                    "gates": {"evaluation": {"min_rows": 1}},
                    **config,
                },
                "inputs": {role: self.made[role].model_dump() for role in roles},
                "output": {"store": self.store.root, "name": "report-1", "code": "0"},
            }
        )


DATA = ("data", "base", "curated", "checked")
MODEL = (*DATA, "champion", "tuned", "merged", "evaluation")


def promoted_release(store: Store, scratch: Path) -> tuple[World, Spec]:
    """A release that went live, with hostile text wherever a data set can put it."""
    world = World(store)
    world.data(HOSTILE)
    world.model(HOSTILE, champion=5)
    world.candidate()
    world.engine()
    world.rollout(scratch)
    return world, world.spec("release", ("candidate", "engine", "rollout"))


def stopped_run(store: Store) -> Spec:
    """A run that the data-quality gate stopped."""
    world = World(store)
    world.data(HOSTILE, leaked=2)
    return world.spec("customize", DATA, failed="data_quality_gate", message=f"fail: {HOSTILE}")


def write_pages(folder: Path) -> None:
    """Both as `promoted.html` and `stopped.html`, for an environment that cannot run the job."""
    from jobs.report.build import build
    from jobs.report.page import render_page

    for name in ("promoted", "stopped"):
        root = folder / name
        root.mkdir()
        store = Store(f"file://{root}")
        spec = promoted_release(store, root)[1] if name == "promoted" else stopped_run(store)
        (folder / f"{name}.html").write_text(render_page(build(spec)), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
