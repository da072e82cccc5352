"""The one record of a run, from which page and model card are made. Every section is None where there is nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from include.gates import Limit, Outcome
from include.model import Model

Tone = Literal["good", "bad", "unsure"]


class Verdict(Model):
    """The end of the run: one line, and the reasons."""

    tone: Tone
    line: str
    reasons: tuple[str, ...] = ()
    stopped_by: str | None = None


class FunnelStage(Model):
    """One stage of the curation: how many rows it left and removed."""

    stage: str
    rows: int
    removed: int


class Example(Model):
    """A removed row, without personal data, shortened."""

    place: str
    detail: str
    text: str


class Removal(Model):
    """All rows that were removed for one reason, and some of them."""

    reason: str
    rows: int
    examples: tuple[Example, ...]


class Data(Model):
    """The curation of the data set; all numbers are rows.

    Attributes:
        redacted: kept rows with personal data of a kind replaced, by kind.
        splits: train, validation, heldout.
    """

    read: int
    kept: int
    stages: tuple[FunnelStage, ...]
    removals: tuple[Removal, ...]
    redacted: dict[str, int]
    splits: dict[str, int]


class Gate(Model):
    """A gate's verdict, reached again from the artifact that it judged."""

    name: str
    outcome: Outcome
    reasons: tuple[str, ...]
    limits: tuple[Limit, ...]


class Training(Model):
    """The loss curve in mean nats an answer token, and the settings of the training.

    Attributes:
        best: the validation whose checkpoint was kept, (step, loss).
    """

    method: str
    loss: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    best: tuple[int, float] | None
    settings: dict[str, str]


class Score(Model):
    """One model on the held-out rows; shares in 0…1, the loss in nats an answer token, None where not finite.

    Attributes:
        lower, upper: 95 % interval of the exact match (Wilson).
        rows_too_long: for the right answer to be given; they count as wrong.
    """

    model: str
    exact_match: float
    lower: float
    upper: float
    rouge_l: float | None
    heldout_loss: float | None
    empty_answers: int
    unfinished_answers: int
    rows_too_long: int = 0


class Difference(Model):
    """Exact match of the tuned model less another's on the same rows, with its 95 % interval (Newcombe, paired)."""

    against: str
    value: float
    lower: float
    upper: float
    won: int
    lost: int


class LabelScore(Model):
    """Exact match by model among the rows of one label."""

    label: str
    rows: int
    exact_match: dict[str, float]


class Answer(Model):
    """One held-out row before and after, without personal data.

    Attributes:
        kind: why it is shown.
    """

    kind: Literal["won", "still wrong", "lost"]
    label: str | None
    prompt: str
    base: str
    tuned: str
    champion: str | None
    reference: str


class Evaluation(Model):
    """Scores of all models on the same held-out rows."""

    rows: int
    few_shot: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    labels: tuple[LabelScore, ...]
    answers: tuple[Answer, ...]


class ParityCheck(Model):
    """The comparison of two stages between the adapter and the served engine."""

    name: str
    between: str
    over: str
    limits: tuple[Limit, ...]


class Engine(Model):
    """The engine that was built, and its speed.

    Attributes:
        size_bytes: of the builder's own files.
        speeds: answer tokens a CPU-second, by batch size.
    """

    builder: str
    version: str
    compute_type: str
    hardware: str
    size_bytes: int
    speeds: dict[int, float]


class AnalysisRun(Model):
    """One analysis run of the canary's judge.

    Attributes:
        seconds: since the first step began.
        weight: the canary's share of the traffic.
        finished, failed, slow, sampled, bad: of (canary, champion), over all steps.
        log10_e: by comparison. `bounds`: anytime-valid upper bounds of the canary's own rates.
    """

    seconds: float
    weight: float
    action: str
    finished: tuple[int, int]
    failed: tuple[int, int]
    slow: tuple[int, int]
    sampled: tuple[int, int]
    bad: tuple[int, int]
    log10_e: dict[str, float]
    bounds: dict[str, float]


class Note(Model):
    """One line of what happened."""

    time: datetime
    state: str
    message: str


class Canary(Model):
    """The rollout as the controller left it.

    Attributes:
        e_limit: log10 of the E-value that takes the canary back. `rate_limit`: of the bounds, for promotion.
        alpha, promotion_alpha: the probabilities that these stand for.
        replayed: analysis runs decided again from their raw counts; `differing` of them came out otherwise.
    """

    outcome: str
    reasons: tuple[str, ...]
    drill: str
    champion: str | None
    restarts: int
    runs: tuple[AnalysisRun, ...]
    notes: tuple[Note, ...]
    limits: tuple[Limit, ...]
    e_limit: float
    rate_limit: float
    alpha: float
    promotion_alpha: float
    replayed: int
    differing: int


class ChainArtifact(Model):
    """One artifact of the chain: what it is, what it was made from, and what that cost.

    Attributes:
        role: the run's name for it. `inputs`: roles (or names) of what it was made from.
        reused: whether an earlier run made it.
        cost: in US dollars; None where the platform gives no price.
    """

    role: str
    job: str
    name: str
    digest: str
    code: str
    inputs: tuple[str, ...]
    reused: bool
    finished: datetime
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    cost: float | None
    config: dict[str, Any]


class Versions(Model):
    """The commits and libraries that the run was made with; several values where stages differ."""

    git: tuple[str, ...]
    python: tuple[str, ...]
    packages: dict[str, tuple[str, ...]]


class Task(Model):
    """The end of one task of the run."""

    task: str
    state: str


class Record(Model):
    """Everything that page and card show.

    Attributes:
        roles: of the artifacts that the DAG makes, including those that this run did not reach.
        missing: an artifact's role → why it could not be read, for those that are gone or damaged.
    """

    dag: str
    run_id: str
    started: datetime
    model: str | None
    version: str | None
    recipe: str
    purpose: str
    base_model: str | None
    overrides: dict[str, Any]
    verdict: Verdict
    tasks: tuple[Task, ...]
    roles: tuple[str, ...] = ()
    data: Data | None = None
    gates: tuple[Gate, ...] = ()
    training: Training | None = None
    evaluation: Evaluation | None = None
    parity: tuple[ParityCheck, ...] = ()
    engine: Engine | None = None
    canary: Canary | None = None
    chain: tuple[ChainArtifact, ...] = ()
    versions: Versions
    missing: dict[str, str] = {}
