"""What is measured of a canary with traffic: its time, the controller's own requests, and what the router counted."""

from __future__ import annotations

import asyncio

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis import judge
from jobs.serving.canary.analysis.baseline import Baseline
from jobs.serving.canary.analysis.observation import Observation


class Measurement:
    """The state of a canary from its first step on, from which each analysis run gets its evidence.

    Attributes:
        step: index into the policy's steps.
        extended: whether the note that the time was extended has been written.
        missed: how many of the controller's own requests in a row the canary left unanswered, champion answering.
        counted: whether the router's counts could be read for the last analysis run.
        golden: the latest result of the golden prompts within this step.
    """

    def __init__(self, policy: CanaryPolicy, observation: Observation, baseline: Baseline) -> None:
        self.observation = observation
        self.baseline = baseline
        self.step = 0
        self.extended = False
        self.missed = 0
        self.counted = False
        self.golden: judge.Golden | None = None
        self._policy = policy
        self._clock = asyncio.get_running_loop().time
        self._began = self._entered = self._clock()
        self._held_before = 0.0
        self._held_since: float | None = None

    def enter(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self._entered = self._clock()
        self.golden = None

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began, without those in which the canary was held."""
        return self._clock() - self._began - self._held_before - (self._held or 0.0)

    @property
    def step_elapsed(self) -> float:
        """Seconds since this step began."""
        return self._clock() - self._entered

    @property
    def golden_is_due(self) -> bool:
        return judge.golden_due(self._policy, self.step_elapsed, self.golden)

    @property
    def is_held(self) -> bool:
        return self._held_since is not None

    def hold(self) -> None:
        """Stop the clock until `release` is called."""
        self._held_since = self._clock()

    def release(self) -> None:
        """Start the clock again after `hold`."""
        self._held_before += self._held or 0.0
        self._held_since = None

    def evidence(self, resumes: int) -> judge.Evidence:
        """Return all that is known now.

        Args:
            resumes: how often a person has let a held canary go on.
        """
        return judge.Evidence(
            step=self.step,
            elapsed=self.elapsed,
            step_elapsed=self.step_elapsed,
            held=self._held,
            resumes=resumes,
            counted=self.counted,
            missed=self.missed,
            golden=self.golden,
            latency_judged=self.baseline.is_known,
            baseline_answers=self.baseline.answers,
            generations=self.observation.generations,
        )

    @property
    def _held(self) -> float | None:
        return None if self._held_since is None else self._clock() - self._held_since
