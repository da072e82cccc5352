from __future__ import annotations

import math
from pathlib import Path

import pytest

from include.errors import DivergenceError
from jobs.finetune.curve import Curve


def curve(*losses: float) -> Curve:
    made = Curve()
    for step, loss in enumerate(losses, start=1):
        made.add_step(step, loss=loss, learning_rate=0.1, grad_norm=1.0, tokens=10)
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_a_step_that_is_no_number_is_a_divergence(field: str, value: float) -> None:
    point = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 1, field: value}
    with pytest.raises(DivergenceError, match=rf"step 7 is {value}"):
        Curve().add_step(7, **point)


def test_a_validation_that_is_no_number_is_a_divergence() -> None:
    with pytest.raises(DivergenceError, match="validation loss at step 3 is nan"):
        Curve().add_validation(3, math.nan)


def test_best_is_the_first_of_the_lowest() -> None:
    made = Curve()
    assert [made.add_validation(step, loss) for step, loss in ((5, 2.0), (10, 1.0), (15, 1.0), (20, 1.5))] == [
        True,
        True,
        False,
        False,
    ]
    assert made.best == {"step": 10, "loss": 1.0}


def test_learned_is_judged_by_the_last_tenth() -> None:
    guessing = math.log(1000)
    curve(*[guessing] * 90, *[guessing * 0.89] * 10).check_learned(1000)
    with pytest.raises(DivergenceError, match=r"guessing gives 6\.908 .*: lower finetune\.learning_rate$"):
        curve(*[1.0] * 90, *[guessing * 0.91] * 10).check_learned(1000)
    with pytest.raises(DivergenceError, match=r": raise finetune\.learning_rate, or finetune\.steps$"):
        curve(*[guessing] * 90, *[guessing * 0.91] * 10).check_learned(1000)


def test_written_and_read_back_is_the_same(tmp_path: Path) -> None:
    made = curve(1 / 3, 1e-17)
    made.add_validation(2, 0.1 + 0.2)
    made.write(tmp_path)
    assert Curve.read(tmp_path) == made
