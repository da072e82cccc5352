"""What the judge decides, and what it never does."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.judge import Arm, Evidence, Generation, Golden, decide, figures, golden_due
from jobs.serving.canary.analysis.runs import AnalysisRun, Heading, read, replay

POLICY = CanaryPolicy(steps=(0.1, 0.5), step_seconds=60, min_requests=200, max_seconds=600)
GOOD = Golden(asked=16, same=16, step_elapsed=60)


def arm(finished: int, failed: int = 0, slow: int = 0, bad: int | None = None, sampled: int | None = None) -> Arm:
    return Arm(
        finished=finished,
        failed=failed,
        slow=slow,
        sampled=finished if sampled is None else sampled,
        bad=failed if bad is None else bad,
    )


def part(step: int, champion: Arm, canary: Arm, **more: object) -> Generation:
    values = {"key": f"boot:{step}", "step": step, "weight": POLICY.steps[step], "champion": champion, "canary": canary}
    return Generation(**{**values, **more})


HEALTHY = (part(0, arm(900), arm(100)), part(1, arm(200), arm(200)))


def evidence(**changes: object) -> Evidence:
    """A healthy canary that may be promoted, but for the changes."""
    values = {"step": 1, "elapsed": 130.0, "step_elapsed": 65.0, "golden": GOOD, "generations": HEALTHY}
    return Evidence(**{**values, **changes})


def test_a_healthy_canary_is_promoted():
    assert decide(POLICY, evidence()) == ("promote", ())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"counted": False}, "counts could not be read"),
        ({"missed": 1}, "did not answer"),
        ({"step_elapsed": 59.0}, "59 of 60 s at this step"),
        ({"golden": None}, "golden prompts have not been asked"),
        ({"generations": HEALTHY[:1]}, "0 of 100 requests answered by the canary within this step"),
        ({"generations": (part(1, arm(150), arm(150)),)}, "150 of 200 requests"),
        ({"generations": (part(1, arm(300, bad=9), arm(300, bad=9)),)}, "9 of the canary's 300 answers read were bad"),
        ({"generations": (part(1, arm(300), arm(300, sampled=0)),)}, "0 of the canary's 0 answers read"),
        ({"generations": (part(1, arm(300, 9), arm(300, 9, sampled=200, bad=0)),)}, "9 of the canary's 300 requests"),
        ({"generations": (part(1, arm(300), arm(300), current=False),)}, "0 of 200 requests"),
        ({"generations": ()}, "0 of 200 requests"),
        ({"latency_judged": False, "baseline_answers": 7}, "latency is not judged yet: 7 of 200 answers"),
        ({"latency_judged": False, "baseline_answers": 200}, "beyond what the router can count"),
        (
            {"generations": (part(1, arm(300), arm(300), latency_judged=False), part(1, arm(50), arm(50)))},
            "latency is judged of 50 of 100 requests",
        ),
    ],
)
def test_whatever_is_missing_keeps_it_from_being_promoted(changes, says):
    decision = decide(POLICY, evidence(**changes))
    assert decision.action == "go_on"
    assert any(says in reason for reason in decision.reasons), decision.reasons


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generations": (part(1, arm(200), arm(200, failed=20)),)}, "errors: 20 of the canary's 200 and 0 of"),
        ({"generations": (part(1, arm(200, slow=10), arm(200, slow=60)),)}, "latency: 60 of the canary's 200"),
        ({"generations": (part(1, arm(200, bad=5), arm(200, bad=50)),)}, "quality: 50 of the canary's 200"),
        ({"golden": Golden(asked=16, same=14, step_elapsed=60)}, "golden prompts: 14 of 16"),
        ({"missed": 2}, "left 2 requests of the controller in a row unanswered"),
    ],
)
@pytest.mark.parametrize("held", [None, 10.0])
def test_harm_sends_it_back_at_any_time(changes, says, held):
    decision = decide(POLICY, evidence(held=held, **changes))
    assert decision.action == "roll_back"
    assert decision.reasons[0].startswith(says) or says in decision.reasons[0]


def test_the_same_share_of_failures_in_both_arms_is_no_harm():
    both = (part(0, arm(900, 90), arm(100, 10)), part(1, arm(500, 50), arm(500, 50)))
    assert decide(POLICY, evidence(generations=both)).action == "go_on"


def test_a_champion_that_answers_wrongly_does_not_keep_a_better_canary_back():
    better = (part(1, arm(300, bad=290), arm(300, bad=0)),)
    assert decide(POLICY, evidence(generations=better)).action == "promote"


def test_failures_before_an_interruption_count_for_a_roll_back_only():
    before = part(0, arm(900, 60), arm(100, 7), current=False)
    assert decide(POLICY, evidence(generations=(before, part(1, arm(300), arm(300))))).action == "promote"
    worse = part(0, arm(900), arm(100, 30), current=False)
    assert decide(POLICY, evidence(generations=(worse, part(1, arm(300), arm(300))))).action == "roll_back"


def test_the_next_step_needs_its_time_its_golden_prompts_and_some_answers():
    first = {"step": 0, "generations": HEALTHY[:1]}
    assert decide(POLICY, evidence(**first)).action == "next_step"
    assert decide(POLICY, evidence(**first, golden=None)).action == "go_on"
    few = (part(0, arm(30), arm(3)),)
    assert "3 of 4 requests" in decide(POLICY, evidence(step=0, generations=few)).reasons[0]


@pytest.mark.parametrize(
    ("policy", "elapsed", "more", "action"),
    [
        ({"inconclusive": "roll_back"}, 599, {}, "go_on"),
        ({"inconclusive": "roll_back"}, 600, {}, "inconclusive"),
        ({"inconclusive": "extend", "extensions": 2}, 1799, {}, "go_on"),
        ({"inconclusive": "extend", "extensions": 2}, 1800, {}, "inconclusive"),
        ({"inconclusive": "hold"}, 600, {}, "hold"),
        ({"inconclusive": "hold"}, 600, {"held": 10.0}, "hold"),
        ({"inconclusive": "hold", "hold_seconds": 50}, 600, {"held": 50.0}, "inconclusive"),
        ({"inconclusive": "hold"}, 600, {"resumes": 1}, "go_on"),
        ({"inconclusive": "hold"}, 1200, {"resumes": 1}, "hold"),
    ],
)
def test_too_little_evidence_is_what_the_policy_says(policy, elapsed, more, action):
    chosen = CanaryPolicy(**{**POLICY.model_dump(), **policy})
    decision = decide(chosen, evidence(elapsed=elapsed, generations=HEALTHY[:1], **more))
    assert decision.action == action
    assert decision.reasons


def test_a_held_canary_is_not_promoted_by_itself():
    assert decide(POLICY, evidence(held=1.0)).action == "hold"


def test_golden_prompts_are_due_when_a_steps_time_is_over_and_again_after_as_long():
    assert not golden_due(POLICY, 59, None)
    assert golden_due(POLICY, 60, None)
    assert not golden_due(POLICY, 100, GOOD)
    assert golden_due(POLICY, 120, GOOD)


counts = st.integers(0, 3000)


@st.composite
def arms(draw):
    finished = draw(counts)
    failed = draw(st.integers(0, finished))
    sampled = draw(st.integers(0, finished))
    return Arm(
        finished=finished,
        failed=failed,
        slow=draw(st.integers(0, finished - failed)),
        sampled=sampled,
        bad=draw(st.integers(0, sampled)),
    )


@st.composite
def any_evidence(draw):
    golden = draw(st.none() | st.integers(0, 16).map(lambda same: Golden(asked=16, same=same, step_elapsed=60)))
    return Evidence(
        step=draw(st.integers(0, 1)),
        elapsed=draw(st.floats(0, 5000)),
        step_elapsed=draw(st.floats(0, 3000)),
        held=draw(st.none() | st.floats(0, 1e6)),
        resumes=draw(st.integers(0, 3)),
        counted=draw(st.booleans()),
        missed=draw(st.integers(0, 4)),
        golden=golden,
        generations=tuple(
            part(draw(st.integers(0, 1)), draw(arms()), draw(arms()), current=draw(st.booleans()))
            for _ in range(draw(st.integers(0, 3)))
        ),
    )


@given(any_evidence())
def test_a_promotion_always_rests_on_enough_of_everything(found):
    decision = decide(POLICY, found)
    numbers = figures(POLICY, found)
    if decision.action == "promote":
        assert found.step == 1 and found.counted and found.held is None and not found.missed
        assert found.golden.same / found.golden.asked >= POLICY.quality.min_golden
        assert sum(one.canary.finished for one in found.generations if one.current) >= POLICY.min_requests
        assert numbers["failed_bound"] <= POLICY.max_bad_rate * (1 + 1e-9)
        assert numbers["bad_bound"] <= POLICY.max_bad_rate * (1 + 1e-9)
    else:
        assert decision.action == "next_step" or decision.reasons
    assert decide(POLICY, found) == decision
    assert decide(POLICY, Evidence.model_validate_json(found.model_dump_json())) == decision


@given(any_evidence())
def test_every_figure_is_a_number(found):
    numbers = figures(POLICY, found)
    assert all(math.isfinite(value) for value in numbers.values())
    assert 0 <= numbers["failed_bound"] <= 1 and 0 <= numbers["bad_bound"] <= 1
    json.dumps(numbers, allow_nan=False)


@given(any_evidence(), st.randoms(use_true_random=False))
def test_the_order_in_which_generations_are_known_changes_nothing(found, random):
    shuffled = list(found.generations)
    random.shuffle(shuffled)
    other = found.model_copy(update={"generations": tuple(shuffled)})
    assert decide(POLICY, other).action == decide(POLICY, found).action
    assert figures(POLICY, other) == pytest.approx(figures(POLICY, found), rel=1e-9, abs=1e-9)


@given(any_evidence())
def test_a_logged_analysis_run_is_decided_alike_again(found):
    decision = decide(POLICY, found)
    run = AnalysisRun(
        attempt=0,
        evidence=found,
        action=decision.action,
        reasons=decision.reasons,
        figures=figures(POLICY, found),
    )
    heading = Heading(rollout="r", policy=POLICY)
    kept = "".join(f"{line.model_dump_json()}\n" for line in (heading, run)).encode()
    assert [again.difference for again in replay(*read(kept, "log"))] == [None]
    forged = "go_on" if decision.action != "go_on" else "promote"
    other = run.model_copy(update={"action": forged})
    assert [again.difference is None for again in replay(heading, [other])] == [False]
