"""Brings a request to its arm, and to the champion where that arm fails before the answer has begun."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from jobs.router.errors import ArmError, RejectedError, RequestError
from jobs.router.generation import Generation, Piece
from jobs.router.limits import Limits
from jobs.router.log import ThrottledLog
from jobs.router.target import Assignment, Target
from jobs.router.upstream import AnswerStream, Upstream

T = TypeVar("T")

_TOLD = {502: "the model failed to answer", 503: "the model cannot answer now", 504: "the model took too long"}


class Dispatcher:
    """Answers requests.

    Attributes:
        in_flight: requests that are being answered.
        turned_away: requests for which there was no room.
    """

    def __init__(self, upstream: Upstream, limits: Limits) -> None:
        self._upstream = upstream
        self._limits = limits
        self._log = ThrottledLog()
        self.in_flight = 0
        self.turned_away = 0

    async def answer(self, target: Target, generation: Generation) -> Piece:
        """The whole answer. Raises RequestError where there is none."""
        self._enter()
        try:
            assignment = target.assign(generation)
            try:
                answer = await self._begin(
                    target, assignment, lambda release: self._upstream.answer(release, generation)
                )
                assignment.answered(answer.text, answer.completion_tokens, answer.finish_reason)
                return answer
            finally:
                if not assignment.ended:
                    assignment.gone()
        finally:
            self.in_flight -= 1

    async def stream(self, target: Target, generation: Generation) -> AsyncIterator[Piece]:
        """The answer piece by piece.

        Raises RequestError; where it does before the first piece, nothing of an answer has begun.
        """
        self._enter()
        try:
            assignment = target.assign(generation)
            stream: AnswerStream | None = None
            try:
                stream = await self._begin(
                    target, assignment, lambda release: self._upstream.open_stream(release, generation)
                )
                piece = stream.first
                while not piece.finish_reason:
                    assignment.streamed(piece.text)
                    yield piece
                    piece = await self._next(target, assignment, stream)
                assignment.streamed(piece.text)
                assignment.answered("", piece.completion_tokens, piece.finish_reason)
                yield piece
                await stream.finish()
            finally:
                if stream is not None:
                    stream.close()
                if not assignment.ended:
                    assignment.gone()
        finally:
            self.in_flight -= 1

    def _enter(self) -> None:
        if self.in_flight >= self._limits.requests:
            self.turned_away += 1
            raise RequestError(
                503, f"{self._limits.requests} requests are being answered already: try again", retry_after=1
            )
        self.in_flight += 1

    async def _begin(self, target: Target, assignment: Assignment, attempt: Callable[[str], Awaitable[T]]) -> T:
        """The beginning of the answer by the assigned arm or, where that fails and a retry is safe, the champion."""
        try:
            return await attempt(assignment.release)
        except (RejectedError, ArmError) as error:
            first = error
        if isinstance(first, ArmError):
            self._tell(target, assignment, first)
        champion = target.route.champion
        canary_failed = assignment.arm == "canary"
        if champion is None or not (canary_failed or (isinstance(first, ArmError) and first.retriable)):
            raise self._give_up(target, assignment, first)
        if canary_failed:
            # A canary that refuses what the champion answers has failed, too.
            assignment.loses(first.status if isinstance(first, ArmError) else 400)
        try:
            return await attempt(champion)
        except RejectedError as error:
            raise self._give_up(target, assignment, error) from error
        except ArmError as error:
            raise self._give_up(target, assignment, first if isinstance(first, RejectedError) else error) from error

    async def _next(self, target: Target, assignment: Assignment, stream: AnswerStream) -> Piece:
        try:
            return await stream.next()
        except ArmError as error:
            self._tell(target, assignment, error)
            raise self._give_up(target, assignment, error) from error

    def _give_up(self, target: Target, assignment: Assignment, error: RejectedError | ArmError) -> RequestError:
        """Book how it ended; what the client is told never names a release."""
        if isinstance(error, RejectedError):
            assignment.rejected()
            message = str(error)
            for release in (assignment.release, target.route.champion, target.route.canary):
                message = message.replace(release, target.name) if release else message
            return RequestError(400, message)
        assignment.failed(error.status)
        return RequestError(error.status, f"{_TOLD[error.status]}: try again", retry_after=1)

    def _tell(self, target: Target, assignment: Assignment, error: ArmError) -> None:
        self._log(
            "arm_failed",
            assignment.release,
            target=target.name,
            arm=assignment.arm,
            release=assignment.release,
            status=error.status,
            reason=str(error)[:300],
        )
