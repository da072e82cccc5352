"""The evidence of a rollout: an artifact with its request, its verdict and every analysis run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.naming import NAME_DIGITS, digest, file_digest
from include.artifacts.store import Store
from jobs.common.runtime import record_provenance
from jobs.serving.canary.analysis.judge import COMPARISONS
from jobs.serving.canary.state.records import Rollout

REQUEST, STATUS, ANALYSIS_LOG, REPORT = "request.json", "status.json", "looks.jsonl", "report.md"
"""Names of the files; they are stored, so that a changed one would not be found by a report."""


def evidence_uri(store: str, rollout: str) -> str:
    """Return the URI at which the evidence of a rollout is, or will be."""
    return Store(store).uri(_name(rollout))


def commit(store: str, rollout: Rollout, analysis_log: Path) -> None:
    """Commit the evidence of a rollout, unless it is in the store already.

    Raises:
        AnemoneError, OSError: the store cannot be written.
    """
    evidence = Store(store)
    name = _name(rollout.id)
    if evidence.manifest(name) is not None:
        return
    with evidence.attempt(name) as attempt:
        (attempt.files / REQUEST).write_text(rollout.request.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (attempt.files / STATUS).write_text(rollout.status.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (attempt.files / ANALYSIS_LOG).write_bytes(analysis_log.read_bytes() if analysis_log.exists() else b"")
        (attempt.files / REPORT).write_text(_report(rollout), encoding="utf-8")
        release = rollout.release.release if rollout.release else rollout.request.release
        attempt.commit(
            job="canary",
            inputs={"engine": InputEntry(uri=release.engine.uri, digest=release.engine.digest)} if release else {},
            config=rollout.request.model_dump(mode="json"),
            code=_code(),
            metrics={"outcome": rollout.status.outcome, "restarts": rollout.status.restarts, **rollout.status.figures},
            provenance=_provenance(rollout),
        )


def _provenance(rollout: Rollout) -> Provenance:
    """Return the provenance, with the time of the rollout's end: its evidence may be stored long after."""
    found = record_provenance(rollout.asked)
    ended = rollout.status.notes[-1].time if rollout.status.notes else found.finished
    seconds = (ended - rollout.asked).total_seconds()
    return found.model_copy(update={"finished": ended, "wall_seconds": round(seconds, 3)})


def _name(rollout: str) -> str:
    return f"canary-{digest(rollout)[:NAME_DIGITS]}"


def _code() -> str:
    """Return the SHA-256 (hex) of the controller's code."""
    package = Path(__file__).parents[1]
    return digest({str(path.relative_to(package)): file_digest(path) for path in package.rglob("*.py")})


def _report(rollout: Rollout) -> str:
    status, request = rollout.status, rollout.request
    lines = [
        f"# {request.kind.capitalize()} on {request.target}: {status.outcome}",
        "",
        *(f"- {reason}" for reason in status.reasons),
        "",
        "| | |",
        "|---|---|",
        f"| rollout | {request.id} |",
        f"| release | {status.name or 'none'} |",
        f"| live afterwards | {status.champion.name if status.champion else 'nothing'} |",
        f"| began again | {status.restarts} times |",
        *(f"| {name} | {value:.4g} |" for name, value in status.figures.items()),
        "",
    ]
    if status.figures:
        names = ", ".join(comparison.name for comparison in COMPARISONS)
        lines += [
            f"The canary goes back where the E-value of a comparison with the champion ({names}) reaches "
            f"{len(COMPARISONS) / request.policy.alpha:.0f}; it is promoted where the bounds of its own rates are "
            f"below {request.policy.max_bad_rate:.4g}. Decide again from the raw counts: "
            "`python -m jobs.serving.canary replay` with this artifact's URI.",
            "",
        ]
    lines += ["| time | state | |", "|---|---|---|"]
    lines += [f"| {_time(note.time)} | {note.state} | {_cell(note.message)} |" for note in status.notes]
    return "\n".join(lines) + "\n"


def _time(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
