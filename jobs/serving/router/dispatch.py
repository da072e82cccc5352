"""Sends a request to its arm, and to the champion where that arm fails before the answer has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

from jobs.serving.log import ThrottledLog
from jobs.serving.router.errors import ArmError, RejectedError, RequestError
from jobs.serving.router.generation import Generation, Piece
from jobs.serving.router.limits import Limits
from jobs.serving.router.target import REJECTED, Arm, Assignment, Target
from jobs.serving.router.upstream import AnswerStream, Upstream

T = TypeVar("T")

_MESSAGES = {502: "the model failed to answer", 503: "the model cannot answer now", 504: "the model took too long"}


class Dispatcher:
    """Answers requests, those of each arm by its own upstream.

    Attributes:
        in_flight: requests that are being answered; one of many rows is one.
        turned_away: requests that were refused because of a limit.
    """

    def __init__(self, upstreams: Mapping[Arm, Upstream], limits: Limits) -> None:
        self._upstreams = upstreams
        self._limits = limits
        self._log = ThrottledLog()
        self.in_flight = 0
        self.turned_away = 0
        # A quarter of the limit, so that requests of many rows leave the rest to all others.
        self._rows = asyncio.Semaphore(max(1, limits.requests // 4))

    async def answer(self, target: Target, generation: Generation) -> Piece:
        """Return the whole answer. Raises RequestError where there is none."""
        self._enter()
        try:
            return await self._answer(target, generation)
        finally:
            self.in_flight -= 1

    async def answer_rows(self, target: Target, rows: list[Generation]) -> list[Piece]:
        """Return the whole answers to the rows of one request.

        Raises RequestError where a row has none, once all have ended: each is counted as a request of its own.
        """
        self._enter()
        try:
            answers = await asyncio.gather(*(self._answer_row(target, row) for row in rows), return_exceptions=True)
        finally:
            self.in_flight -= 1
        pieces = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            pieces.append(answer)
        return pieces

    async def _answer_row(self, target: Target, generation: Generation) -> Piece:
        async with self._rows:
            return await self._answer(target, generation)

    async def _answer(self, target: Target, generation: Generation) -> Piece:
        assignment = target.assign(generation, stream=False)
        try:
            answer = await self._begin(
                target, assignment, lambda upstream, release: upstream.answer(release, generation)
            )
            assignment.answered(answer.text, answer.completion_tokens, answer.finish_reason)
            return answer
        finally:
            if not assignment.ended:
                assignment.client_gone()

    async def stream(self, target: Target, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Yield the answer piece by piece.

        Raises RequestError; where it does before the first piece, nothing of an answer has begun.
        """
        self._enter()
        try:
            assignment = target.assign(generation, stream=True)
            stream: AnswerStream | None = None
            try:
                stream = await self._begin(
                    target, assignment, lambda upstream, release: upstream.open_stream(release, generation)
                )
                piece = stream.first
                while not piece.finish_reason:
                    assignment.streamed(piece.text)
                    yield piece
                    assignment.client_ready()
                    piece = await self._next(target, assignment, stream)
                assignment.streamed(piece.text)
                assignment.answered("", piece.completion_tokens, piece.finish_reason)
                yield piece
                await stream.finish()
            finally:
                if stream is not None:
                    stream.close()
                if not assignment.ended:
                    assignment.client_gone()
        finally:
            self.in_flight -= 1

    def turn_away(self, reason: str) -> RequestError:
        """Count a request that a limit refuses; return the error for its client."""
        self.turned_away += 1
        return RequestError(503, f"{reason}: try again", retry_after=1)

    def _enter(self) -> None:
        if self.in_flight >= self._limits.requests:
            raise self.turn_away(f"{self._limits.requests} requests are being answered already")
        self.in_flight += 1

    async def _begin(
        self, target: Target, assignment: Assignment, attempt: Callable[[Upstream, str], Awaitable[T]]
    ) -> T:
        """Return the beginning of the assigned arm's answer or, where it fails and a retry is safe, the champion's."""
        try:
            return await attempt(self._upstreams[assignment.arm], assignment.release)
        except (RejectedError, ArmError) as error:
            first = error
        if isinstance(first, ArmError):
            self._log_failure(target, assignment, first)
        champion = target.route.champion
        retriable = assignment.arm == "canary" or (isinstance(first, ArmError) and first.retriable)
        if champion is None or not retriable:
            raise self._give_up(target, assignment, first)
        # A canary that refuses what the champion answers has failed as well.
        assignment.fall_back(first.status if isinstance(first, ArmError) else REJECTED)
        try:
            return await attempt(self._upstreams["champion"], champion)
        except RejectedError as error:
            raise self._give_up(target, assignment, error) from error
        except ArmError as error:
            raise self._give_up(target, assignment, first if isinstance(first, RejectedError) else error) from error

    async def _next(self, target: Target, assignment: Assignment, stream: AnswerStream) -> Piece:
        try:
            return await stream.next()
        except ArmError as error:
            self._log_failure(target, assignment, error)
            raise self._give_up(target, assignment, error) from error

    def _give_up(self, target: Target, assignment: Assignment, error: RejectedError | ArmError) -> RequestError:
        """Count how the request ended; return the error for its client, which never names a release."""
        if isinstance(error, RejectedError):
            assignment.rejected()
            message = str(error)
            for release in (assignment.release, target.route.champion, target.route.canary):
                message = message.replace(release, target.name) if release else message
            return RequestError(400, message)
        assignment.failed(error.status)
        return RequestError(error.status, f"{_MESSAGES[error.status]}: try again", retry_after=1)

    def _log_failure(self, target: Target, assignment: Assignment, error: ArmError) -> None:
        self._log(
            "arm_failed",
            assignment.release,
            target=target.name,
            arm=assignment.arm,
            release=assignment.release,
            status=error.status,
            reason=str(error)[:300],
        )
