"""The messages between Airflow and the canary controller: a rollout's request and its status.

A target is a public model name. A release on it is one engine of one model version; its rollout has an id that the
client chooses, so that asking twice starts one rollout.
"""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from include.model import Model
from include.specs.base import Artifact
from include.specs.champion import ModelName

Probability = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]
"""At most a year: JSON has no infinity, and the clock overflows."""

RETIRE_SECONDS = 60.0
"""How long a request to retire a target waits, before the controller answers that it is still in progress."""

Kind = Literal["release", "rollback"]
Drill = Literal["none", "slow", "failing", "garbled"]
State = Literal["pending", "precheck", "load", "ready", "smoke", "step", "held", "promoted", "rolling_back", "finished"]
"""`promoted` is the commit point: after a crash before it the champion stays, after one past it the release is live."""
Outcome = Literal["promoted", "rolled_back", "inconclusive", "refused"]
"""`refused`: the precheck failed, and nothing was loaded."""


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression ({error})") from None
    return text


def _increasing(steps: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"the weights {list(steps)} do not increase")
    return steps


class Quality(Model):
    """What makes a live answer a bad one, besides an error and an empty text.

    Attributes:
        answer_format: regular expression that a whole answer has to match; None accepts any text.
        golden_prompts: how many of the engine's own golden prompts are asked again at each step.
        min_golden: share of them that must give the very text that the engine gave when it was built.
        check_references: whether a sampled request whose prompt is a golden one is compared with its reference.
    """

    answer_format: Annotated[str, AfterValidator(_regular_expression)] | None = None
    golden_prompts: Annotated[int, Field(ge=1)] = 16
    min_golden: Annotated[float, Field(gt=0, le=1)] = 0.9
    check_references: bool = True


class CanaryPolicy(Model):
    """How a canary gets more and more of the traffic, and what stops it.

    Attributes:
        steps: shares of the traffic, increasing; each request is assigned independently.
        step_seconds: least time at each step.
        look_seconds: between two analysis runs.
        min_requests: of the canary, over all steps, before it can be promoted; half of them within the last step.
        max_seconds: over all steps; then the verdict is `inconclusive`.
        baseline_requests: answers of the champion from which its latency quantile is frozen.
        baseline_seconds: time for these before the first step begins; where they are fewer by then, latency is judged
            once there are enough, and there is no promotion before.
        alpha: probability of rolling back a canary that is as good as the champion, over the whole rollout and all
            judges together.
        promotion_alpha: probability of promoting a canary whose share of bad answers is at or above `max_bad_rate`.
        max_bad_rate: the limit on the canary's own share of bad answers.
        latency_quantile: an answer slower than this frozen quantile of the champion's, times `latency_tolerance`,
            counts as slow: a quantile is uncertain itself, two models' answers are not equally long, and a few per cent
            are not worth a rollback.
        sample: share of requests whose answers the controller reads to judge their quality, the same in both arms.
        inconclusive: what becomes of a canary with too little evidence: it is rolled back; it gets another
            `max_seconds`, at most `extensions` times; or it keeps its weight for `hold_seconds` until a person says
            resume or abort. It is never promoted for lack of evidence.
        warm_seconds: how long the former champion stays loaded after a promotion, for a rollback without a load.
    """

    steps: Annotated[tuple[Probability, ...], Field(min_length=1), AfterValidator(_increasing)] = (0.05, 0.25, 0.5)
    step_seconds: Seconds = 120.0
    look_seconds: Seconds = 10.0
    min_requests: Annotated[int, Field(ge=1)] = 500
    max_seconds: Seconds = 3600.0
    baseline_requests: Annotated[int, Field(ge=1)] = 200
    baseline_seconds: Seconds = 120.0
    alpha: Probability = 0.05
    promotion_alpha: Probability = 0.05
    max_bad_rate: Probability = 0.02
    latency_quantile: Probability = 0.95
    latency_tolerance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.25
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    quality: Quality = Quality()
    inconclusive: Literal["roll_back", "extend", "hold"] = "roll_back"
    extensions: Annotated[int, Field(ge=0)] = 1
    hold_seconds: Seconds = 86400.0
    warm_seconds: Seconds = 86400.0


class Release(Model):
    """One engine of one registered version.

    Attributes:
        model: the registered model's name, and the public one that clients ask for.
        version: of the registered model.
        engine: the artifact of the job `engine`.
    """

    model: ModelName
    version: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
    engine: Artifact


class RolloutRequest(Model):
    """A request for a rollout.

    Attributes:
        id: chosen by the client; the same id with the same request is the same rollout.
        kind: `release` takes the canary through its steps; `rollback` shifts all traffic at once, after the same
            precheck and smoke test.
        target: the public model name.
        release: the release to make live. A rollback may name a `version` that was live before instead, or neither:
            then it means the previous one.
        expected_champion: the version that the candidate was compared with; None: with none. Where another version is
            live by now the rollout is refused, unless the release is of the live version itself. Ignored by a
            rollback.
        drill: rehearse a bad release: the engine passes its smoke test, and misbehaves once it gets traffic as
            a canary. It is never promoted.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:+-]{0,199}$")]
    kind: Kind
    target: ModelName
    release: Release | None = None
    version: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")] | None = None
    expected_champion: str | None = None
    policy: CanaryPolicy = CanaryPolicy()
    drill: Drill = "none"

    @model_validator(mode="after")
    def _consistent(self) -> RolloutRequest:
        if self.kind == "release" and self.release is None:
            raise ValueError("a release names what to release")
        if self.kind == "rollback" and self.drill != "none":
            raise ValueError("a rollback is no drill")
        if self.release is not None and self.release.model != self.target:
            raise ValueError(f"the release is of model {self.release.model!r}, the target is {self.target!r}")
        if self.release is not None and self.version is not None:
            raise ValueError("name a release or a version, not both")
        return self


class LiveRelease(Model):
    """A release that is, or was, served.

    `name` is its own model name inside Triton, which no client can reach.
    """

    name: str
    release: Release
    since: datetime
    drill: Drill = "none"


class Note(Model):
    """One event of a rollout."""

    time: datetime
    state: State
    message: str


class RolloutStatus(Model):
    """The status of a rollout.

    Attributes:
        name: the release's own model name, once known.
        step: index into the policy's steps while the state is `step` or `held`; `weight` is the canary's share now.
        outcome: None until it is decided.
        reasons: a message each; for every outcome but `promoted` at least one.
        figures: the numbers that the last analysis run rests on.
        champion: what is live on the target now.
        restarts: how often it began again at its first step, after the controller had died.
        evidence: URI of the committed artifact with every analysis run; None until it is.
        evidence_pending: the URI at which it will be, where the rollout has ended without it: the controller keeps it,
            and stores it once the store takes it.
    """

    id: str
    kind: Kind
    target: ModelName
    state: State
    name: str | None = None
    step: int | None = None
    weight: float = 0.0
    outcome: Outcome | None = None
    reasons: tuple[str, ...] = ()
    figures: dict[str, float] = {}
    champion: LiveRelease | None = None
    restarts: int = 0
    evidence: str | None = None
    evidence_pending: str | None = None
    notes: tuple[Note, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state == "finished"


class TargetStatus(Model):
    """The status of a target.

    Attributes:
        champion: takes all the traffic that no canary takes; None before the first release.
        previous: releases that were live before, newest first; each can be gone back to.
        rollout: id of the rollout in progress, if any.
        healthy: whether the champion answered a real request within the last few seconds.
    """

    target: ModelName
    champion: LiveRelease | None = None
    previous: tuple[LiveRelease, ...] = ()
    rollout: str | None = None
    healthy: bool = False


class ControllerState(Model):
    """Everything that a controller may still need.

    Attributes:
        unfinished: rollouts that have not ended.
    """

    targets: tuple[TargetStatus, ...] = ()
    unfinished: tuple[RolloutRequest, ...] = ()
