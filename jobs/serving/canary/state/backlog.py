"""Evidence that the store could not take at the end of a rollout: kept beside its record, and stored later."""

from __future__ import annotations

import asyncio
from datetime import datetime

from include.errors import AnemoneError
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.log import log

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 10.0
"""Between two tries to store the same evidence: the first pause, which doubles up to the longest."""


class EvidenceBacklog:
    """Stores the evidence of rollouts that have ended without it, and forgets none before.

    It holds nothing that has to survive: the records and analysis logs on the disk are all that a restart needs.

    Args:
        store: root URI of the store.
        rollouts: the ended ones by id; the controller adds to them, and only what is forgotten here leaves them.
    """

    def __init__(self, records: Records, store: str, rollouts: dict[str, Rollout]) -> None:
        self._records = records
        self._store = store
        self._rollouts = rollouts
        self._changing = asyncio.Lock()
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._logged: dict[str, str] = {}

    async def store(self) -> None:
        """Try once to store the evidence of each rollout that lacks it, but for those whose pause is not over."""
        clock = asyncio.get_running_loop().time
        for rollout in [one for one in self._rollouts.values() if one.lacks_evidence]:
            if clock() < self._not_before.get(rollout.id, 0.0):
                continue
            try:
                await self._store_evidence(rollout)
            except (AnemoneError, OSError) as error:
                self._delay(rollout.id, clock(), "evidence_pending", str(error))
            except Exception as error:
                # A bug that one rollout meets must not cost the others their evidence.
                self._delay(rollout.id, clock(), "fault", f"{type(error).__name__}: {error}")
            else:
                # The store is back: the others need not wait.
                self._pauses.clear()
                self._not_before.clear()

    async def _store_evidence(self, rollout: Rollout) -> None:
        uri = evidence.evidence_uri(self._store, rollout.id)
        stored = _stored_at(uri, rollout)
        await asyncio.to_thread(evidence.commit, self._store, stored, self._records.analysis_log(rollout.id))
        await self._end(rollout.id, uri)

    async def forget_old(self, oldest: datetime) -> None:
        """Forget the rollouts that ended before `oldest`, and whose evidence is stored.

        Raises:
            OSError: the disk does not take it; call it again then.
        """
        for rollout in [one.id for one in self._rollouts.values() if one.forgettable(oldest)]:
            async with self._changing:
                await self._forget(rollout)

    async def retire(self, rollout: str) -> None:
        """Forget an ended rollout; where it lacks its evidence, only once that is stored.

        Raises:
            OSError: the disk does not take it; call it again then.
        """
        async with self._changing:
            found = self._rollouts.get(rollout)
            if found is None:
                return
            if not found.lacks_evidence:
                await self._forget(rollout)
                return
            retired = found.model_copy(update={"retired": True})
            await self._records.save_rollout(retired)
            self._rollouts[rollout] = retired

    async def _end(self, rollout: str, uri: str) -> None:
        """Record that the evidence is stored."""
        async with self._changing:
            found = self._rollouts.get(rollout)
            if found is None:
                return
            if found.retired:
                await self._forget(rollout)
            else:
                ended = _stored_at(uri, found)
                await self._records.save_rollout(ended)
                self._rollouts[rollout] = ended
        self._logged.pop(rollout, None)
        log("evidence_stored", rollout=rollout, evidence=uri)

    async def _forget(self, rollout: str) -> None:
        """Forget a rollout, unless that was done before; its id may be another one's by now."""
        if rollout in self._rollouts:
            await self._records.forget_rollout(rollout)
            del self._rollouts[rollout]

    def _delay(self, rollout: str, now: float, event: str, error: str) -> None:
        pause = self._pauses.get(rollout, _PAUSE_SECONDS)
        self._not_before[rollout] = now + pause
        self._pauses[rollout] = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if self._logged.get(rollout) != error:
            log(event, rollout=rollout, error=error)
        self._logged[rollout] = error


def _stored_at(uri: str, rollout: Rollout) -> Rollout:
    status = rollout.status.model_copy(update={"evidence": uri, "evidence_pending": None})
    return rollout.model_copy(update={"status": status})
