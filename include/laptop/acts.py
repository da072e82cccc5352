"""The demo's acts: a run of a DAG each, and how it has to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from include.laptop.watch import ENDED, Run, Stage


@dataclass
class Act:
    """One run of the demo, and how it has to end.

    Attributes:
        find: returns the run's id once there is a run; called again and again until then.
        stopped_by: the task that must end the run, with a message that begins with `verdict`; None: it must succeed.
        traffic: what the traffic generator counted while the run went on: {"sent", "answered", "failed"}; empty for an
            act without traffic.
        succeeds_with: the task after which only the report of a successful run is left, where there is one.
    """

    run: Run
    find: Callable[[], str | None]
    stopped_by: str | None = None
    verdict: str = "fail: "
    traffic: dict[str, int] = field(default_factory=dict)
    succeeds_with: str | None = None

    @property
    def title(self) -> str:
        return self.run.title

    @property
    def decided(self) -> bool:
        """Whether the run has ended, or only has its outcome left to report."""
        decisive = self._decisive_stage
        return self.run.ended or (decisive is not None and decisive.state in ENDED)

    @property
    def problem(self) -> str | None:
        """A sentence where the run was not decided as it should be; a gate that broke has not decided anything."""
        stopped = self.run.stopped_by
        if self.stopped_by is None:
            decisive = self._decisive_stage
            succeeding = not self.run.ended and decisive is not None and decisive.state == "success"
            as_wanted, wanted = succeeding or self.run.state == "success", "succeed"
        else:
            as_wanted = (
                stopped is not None and stopped.task == self.stopped_by and stopped.error.startswith(self.verdict)
            )
            wanted = f"be stopped by {self.stopped_by}"
        if as_wanted:
            lost = self.traffic.get("failed", 0)
            if lost:
                return f"the act {self.title!r} lost {lost} requests of the traffic"
            if self.traffic and not self.traffic["answered"]:
                return f"no request of the traffic was answered during the act {self.title!r}: see the generator's log"
            return None
        found = f"ended in {stopped.task}: {stopped.error}" if stopped else f"ended as {self.run.state}"
        return f"the act {self.title!r} should {wanted}, but its run {found}"

    @property
    def _decisive_stage(self) -> Stage | None:
        task = self.stopped_by or self.succeeds_with
        return self.run.stage(task) if task else None


def unexpected(acts: Sequence[Act]) -> list[str]:
    """Return a sentence for each act that did not end as it should."""
    return [problem for act in acts if (problem := act.problem) is not None]
