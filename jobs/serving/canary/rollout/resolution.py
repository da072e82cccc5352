"""Which release a request means: a release names it, a rollback means one that was live before."""

from __future__ import annotations

from include.release.rollouts import LiveRelease, RolloutRequest
from jobs.serving.canary.state.records import Rollout, TargetRecord


def resolve(rollout: Rollout, record: TargetRecord) -> LiveRelease | str:
    """Return the release that a rollout is to make live, or the reason why the request is refused."""
    request = rollout.request
    if request.release is not None:
        if request.kind == "release" and (refusal := _stale_comparison(request, record.champion)):
            return refusal
        if request.drill != "none" and record.champion is None:
            return f"nothing is live on {record.target}: a drill needs a champion to go back to"
        return LiveRelease(name="", release=request.release, since=rollout.asked, drill=request.drill)
    known = [live for live in (record.champion, *record.previous) if live is not None]
    if request.version is None:
        if not record.previous:
            return f"nothing was live on {record.target} before: name a release or a version"
        return record.previous[0]
    for live in known:
        if live.release.version == request.version:
            return live
    versions = ", ".join(dict.fromkeys(live.release.version for live in known)) or "none"
    return f"version {request.version} was never live on {record.target} (known: {versions}): release it instead"


def _stale_comparison(request: RolloutRequest, champion: LiveRelease | None) -> str | None:
    release, expected = request.release, request.expected_champion
    assert release is not None
    if champion is None or champion.release.version in (expected, release.version):
        return None
    with_whom = f"version {expected}" if expected else "no champion"
    return (
        f"version {release.version} was compared with {with_whom}, but version {champion.release.version} is live "
        f"by now: compare it with that one first (where MLflow's champion is not version "
        f"{champion.release.version} yet, clear the task promote of the run that brought it)"
    )
