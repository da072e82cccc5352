"""The loss curve: complete over resumes, and checked for divergence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from include.errors import DivergenceError

TRAINING = "loss.jsonl"
VALIDATION = "validation.jsonl"

_UNLEARNED = 0.9
"""Share of ln(vocabulary) above which a loss is as good as guessing among all tokens."""

_ROSE = 1.2
"""Ratio of the last losses to the first above which they rose; below, batches differ by as much."""


@dataclass
class Curve:
    """Every optimizer step ({"step", "loss", "learning_rate", "grad_norm", "tokens"}) and every validation
    ({"step", "loss"}) from step 1 on; losses are means over answer tokens, in nats.
    """

    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Curve:
        """Return the curve that `write` left in `folder`."""
        return cls(_read(folder / TRAINING), _read(folder / VALIDATION))

    def write(self, folder: Path) -> None:
        """Write `loss.jsonl` and `validation.jsonl`."""
        _write(folder / TRAINING, self.training)
        _write(folder / VALIDATION, self.validation)

    @property
    def best(self) -> dict[str, float] | None:
        """The first validation with the lowest loss, or None before any."""
        return min(self.validation, key=lambda point: point["loss"], default=None)

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the steps, at most 20."""
        last = self.training[-max(1, min(20, len(self.training) // 10)) :]
        return sum(point["loss"] for point in last) / len(last)

    def add_step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, tokens: int) -> None:
        """Record an optimizer step.

        Raises:
            DivergenceError: the loss or the gradient norm is not a finite number.
        """
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise DivergenceError(
                    f"training diverged: the {name} at step {step} is {value} (learning rate {learning_rate:.3g}): "
                    "lower finetune.learning_rate"
                )
        self.training.append(
            {"step": step, "loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, "tokens": tokens}
        )

    def add_validation(self, step: int, loss: float) -> bool:
        """Record a validation, and return whether it is the best so far.

        Raises:
            DivergenceError: the loss is not a finite number.
        """
        if not math.isfinite(loss):
            raise DivergenceError(
                f"training diverged: the validation loss at step {step} is {loss}: lower finetune.learning_rate"
            )
        best = self.best
        self.validation.append({"step": step, "loss": loss})
        return best is None or loss < best["loss"]

    def check_learned(self, vocab_size: int) -> None:
        """Refuse a curve whose last losses are still those of guessing among `vocab_size` tokens.

        Raises:
            DivergenceError: they are.
        """
        guessing, began = math.log(vocab_size), self.training[0]["loss"]
        if self.final_loss > _UNLEARNED * guessing:
            remedy = "raise finetune.learning_rate, or finetune.steps"
            if self.final_loss > _ROSE * began:
                remedy = "lower finetune.learning_rate"
            raise DivergenceError(
                f"training learned nothing: the loss began at {began:.3f} and ended at {self.final_loss:.3f}, guessing "
                f"gives {guessing:.3f} (ln of {vocab_size} tokens): {remedy}"
            )


def _read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, points: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")
