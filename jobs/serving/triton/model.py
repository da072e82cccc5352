"""The Python model that Triton runs for each release: text in, text out, by a CTranslate2 engine.

It is copied into every release's version folder, with `writer.py` and `jobs.common.engine_runtime`'s `text.py` and
`hardware.py` beside it, and imports nothing else of this project. Requests wait in a queue of its own, with a limit,
and one thread answers them in batches: the queue limits of tritonserver 2.51 stall its dynamic batcher for half a
second now and then (github.com/triton-inference-server/core/pull/509).
Errors begin with INVALID_ARGUMENT where the client can correct them, and with INTERNAL otherwise; over HTTP Triton
gives both the status 400, so that only the body differs.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ctranslate2
import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))

import hardware
import text
from writer import Writer

ROLES = ("system", "user", "assistant")
MAX_STOPS = 16
STOP, LENGTH = "stop", "length"
GREEDY_BELOW = float(np.float32(0.01))  # as the input carries it
"""A temperature above 0 and below this is taken as 0: logits divided by it may overflow, and sampling is greedy."""

CANCEL_SECONDS = 0.05
"""How often a stream asks whether its client has gone away, which costs a message to the server. Whole answers do not
ask: tritonserver notices a closed HTTP connection only when it writes to it."""


class BadRequestError(Exception):
    """The request is wrong."""


class QueueFullError(Exception):
    """Too many requests wait; the message is Triton's own."""


class Sampling(NamedTuple):
    """What all rows of one generation share; temperature 0 is greedy, another is at least GREEDY_BELOW."""

    temperature: float
    top_p: float


class Limits(NamedTuple):
    """In tokens; `total` counts prompt and answer."""

    total: int
    answer: int
    end_ids: frozenset[int]


class Answer:
    """One request on its way to its answer.

    Attributes:
        prompt: token ids.
        writer: makes its text.
        stepwise: each token is handled as it comes.
        done: the last response is sent.
    """

    def __init__(
        self, sender: Any, *, prompt: list[int], max_tokens: int, sampling: Sampling, writer: Writer, stream: bool,
        stepwise: bool,
    ) -> None:  # fmt: skip
        self._sender = sender
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.writer = writer
        self.stream = stream
        self.stepwise = stepwise
        self.done = False
        self._count = 0
        self._pieces: list[str] = []
        self._asked = time.monotonic()

    @property
    def cancelled(self) -> bool:
        """Whether a stream's client has gone away; if so, a last response is sent, which frees its place in Triton."""
        self._asked = time.monotonic()
        if self.stream and not self.done and self._sender.is_cancelled():
            self.fail("INTERNAL: the client has gone away", pb_utils.TritonError.CANCELLED)
        return self.done

    def step(self, token: int, *, last: bool, end_ids: frozenset[int]) -> bool:
        """Take one generated token; return True where the row is to end."""
        if self.done:
            return True
        ended = last and token in end_ids
        piece = ""
        if not ended:
            self._count += 1
            piece = self.writer.feed(token)
        if ended or self.writer.stopped:
            self._end(piece + self.writer.finish(), STOP)
        elif last or self._count >= self.max_tokens:
            self._end(piece + self.writer.finish(), LENGTH)
        else:
            self._piece(piece)
            if time.monotonic() - self._asked > CANCEL_SECONDS:
                return self.cancelled
        return self.done

    def whole(self, ids: Sequence[int]) -> None:
        """Take all generated tokens at once, without the end token."""
        self._count = len(ids)
        self._end(self.writer.whole(ids), LENGTH if self._count >= self.max_tokens else STOP)

    def fail(self, message: str, code: int | None = None) -> None:
        """End with an error; `code` is one of Triton's, INTERNAL where it is not given. Never raises."""
        self.done = True
        _refuse(self._sender, message, pb_utils.TritonError.INTERNAL if code is None else code)

    def _piece(self, piece: str) -> None:
        if self.stream and piece:
            self._sender.send(self._response(piece, ""))
        elif piece:
            self._pieces.append(piece)

    def _end(self, piece: str, reason: str) -> None:
        text = piece if self.stream else "".join([*self._pieces, piece])
        self._sender.send(self._response(text, reason), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        self.done = True  # not before: an answer that cannot be sent still has to fail

    def _response(self, text: str, reason: str) -> Any:
        def tensor(name: str, value: Any, kind: Any) -> Any:
            return pb_utils.Tensor(name, np.array([[value]], dtype=kind))

        return pb_utils.InferenceResponse(
            output_tensors=[
                tensor("text_output", text.encode(), np.object_),
                tensor("finish_reason", reason.encode(), np.object_),
                tensor("prompt_tokens", len(self.prompt), np.int32),
                tensor("completion_tokens", self._count, np.int32),
            ]
        )


class Queue:
    """Answers that wait to be generated; many threads put, one takes.

    Args:
        size: how many may wait.
        seconds: how long one may wait.
        batch: how many are taken at most.
    """

    def __init__(self, size: int, seconds: float, batch: int) -> None:
        self._size = size
        self._seconds = seconds
        self._batch = batch
        self._waiting: deque[tuple[float, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, answer: Answer) -> None:
        """Add an answer. Raises QueueFullError where too many wait."""
        with self._changed:
            if len(self._waiting) >= self._size:
                raise QueueFullError(f"Exceeds maximum queue size: {self._size} requests wait already")
            self._waiting.append((time.monotonic(), answer))
            self._changed.notify()

    def take(self) -> list[Answer]:
        """Return the next batch, waiting for it; an empty one when the queue is closed and nothing waits any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                taken = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            oldest = time.monotonic() - self._seconds
            for since, answer in taken:
                if since < oldest:
                    message = f"INTERNAL: Request timeout expired: it waited longer than {self._seconds:g} s"
                    answer.fail(message, pb_utils.TritonError.UNAVAILABLE)
            batch = [answer for _, answer in taken if not answer.done]
            if batch or not taken:
                return batch

    def close(self) -> None:
        """Let `take` end once nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class TritonPythonModel:
    """The class that Triton's Python backend calls.

    Parameters of config.pbtxt: `engine` (the engine's folder), `threads`, `queue_size`, `queue_seconds`.
    """

    writer = Writer

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine and generate one token with it.

        Raises:
            Exception: the engine was not built for this machine, or is not one; Triton passes it on to its client.
        """
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        engine = Path(parameters["engine"]["string_value"])
        build = json.loads((engine / "build.json").read_text(encoding="utf-8"))
        hardware.require_hardware(build)
        self._text = text.load(engine)
        settings = json.loads((engine / "generation.json").read_text(encoding="utf-8"))
        self._limits = Limits(settings["max_tokens"], settings["max_new_tokens"], frozenset(settings["end_ids"]))
        self._generator = ctranslate2.Generator(
            str(engine / "engine"),
            device="cpu",
            compute_type=build["compute_type"],
            inter_threads=1,
            intra_threads=int(parameters["threads"]["string_value"]),
        )
        start = self._text.prompt_ids([{"role": "user", "content": "?"}])
        self._run([start], Sampling(0.0, 1.0), max_tokens=1)
        self._queue = Queue(
            int(parameters["queue_size"]["string_value"]),
            float(parameters["queue_seconds"]["string_value"]),
            config["max_batch_size"],
        )
        self._server = threading.Thread(target=self._serve, name="generation")
        self._server.start()

    def finalize(self) -> None:
        """Answer what waits, and free the engine: its threads must have ended before the interpreter does."""
        self._queue.close()
        self._server.join()
        del self._generator

    def execute(self, requests: list[Any]) -> None:
        """Put requests into the queue, or refuse them; return at once."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._queue.put(self._read(request, sender))
            except BadRequestError as error:
                _refuse(sender, f"INVALID_ARGUMENT: {error}", pb_utils.TritonError.INVALID_ARG)
            except QueueFullError as error:
                _refuse(sender, f"INTERNAL: {error}", pb_utils.TritonError.UNAVAILABLE)
            except Exception as error:
                _refuse(sender, f"INTERNAL: {error}", pb_utils.TritonError.INTERNAL)

    def generate(self, answers: list[Answer]) -> None:
        """Answer a batch; rows with equal sampling are generated together."""
        groups: dict[Sampling, list[Answer]] = {}
        for answer in answers:
            if not answer.cancelled:
                groups.setdefault(answer.sampling, []).append(answer)
        for sampling, group in groups.items():
            self._answer(group, sampling)

    def _serve(self) -> None:
        try:
            while batch := self._queue.take():
                try:
                    self.generate(batch)
                except Exception as error:
                    for answer in batch:
                        if not answer.done:
                            answer.fail(f"INTERNAL: {error}")
        except BaseException:
            # Without this thread the process would take requests for ever and answer none.
            traceback.print_exc()
            os._exit(1)

    def _answer(self, answers: list[Answer], sampling: Sampling) -> None:
        longest = max(answer.max_tokens for answer in answers)
        prompts = [answer.prompt for answer in answers]
        # A callback doubles the cost of a token for the smallest models.
        if not any(answer.stepwise or answer.max_tokens < longest for answer in answers):
            for answer, ids in zip(answers, self._run(prompts, sampling, max_tokens=longest), strict=True):
                answer.whole(ids)
            return
        # An exception that leaves the callback ends the process.
        failed: list[Exception] = []

        def step(result: Any) -> bool:
            try:
                return bool(failed) or answers[result.batch_id].step(
                    result.token_id, last=result.is_last, end_ids=self._limits.end_ids
                )
            except Exception as error:
                failed.append(error)
                return True

        self._run(prompts, sampling, max_tokens=longest, callback=step)
        if failed:
            raise failed[0]

    def _run(
        self, prompts: list[list[int]], sampling: Sampling, *, max_tokens: int, callback: Any = None
    ) -> list[list[int]]:
        greedy = sampling.temperature == 0
        results = self._generator.generate_batch(
            [self._text.tokens(prompt) for prompt in prompts],
            include_prompt_in_result=False,
            max_length=max_tokens,
            end_token=sorted(self._limits.end_ids),
            sampling_topk=1 if greedy else 0,
            sampling_topp=1.0 if greedy else sampling.top_p,
            sampling_temperature=1.0 if greedy else sampling.temperature,
            callback=callback,
        )
        return [result.sequences_ids[0] for result in results]

    def _read(self, request: Any, sender: Any) -> Answer:
        raw, talk = _text(request, "text_input"), _text(request, "messages")
        if raw is not None and talk is not None:
            raise BadRequestError("give either text_input or messages, not both")
        if raw is not None:
            prompt = self._text.text_ids(_filled(raw))
        elif talk is not None:
            prompt = self._prompt(_messages(talk))
        else:
            raise BadRequestError("give either text_input or messages")
        sampling = _sampling(request)
        stops = _stops(_text(request, "stop"))
        stream = bool(_scalar(request, "stream", False))
        max_tokens = self._max_tokens(_scalar(request, "max_tokens", None), len(prompt))
        return Answer(
            sender,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            writer=self.writer(self._text.decode, stops, strip=talk is not None),
            stream=stream,
            stepwise=stream or bool(stops),
        )

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            return self._text.prompt_ids(messages)
        except text.TemplateError as error:
            raise BadRequestError(f"messages: the model's chat template does not take them ({error})") from None

    def _max_tokens(self, asked: int | None, prompt: int) -> int:
        left = self._limits.total - prompt
        if left < 1:
            raise BadRequestError(
                f"the prompt has {prompt} tokens; prompt and answer together may have {self._limits.total}: shorten it"
            )
        if asked is None:
            return min(left, self._limits.answer)
        if not 1 <= asked <= self._limits.answer:
            raise BadRequestError(f"max_tokens is {asked}: ask for 1 to {self._limits.answer}")
        if asked > left:
            raise BadRequestError(
                f"the prompt has {prompt} tokens and max_tokens asks for {asked}; together they may have "
                f"{self._limits.total}: ask for at most {left}, or shorten the prompt"
            )
        return asked


def _refuse(sender: Any, message: str, code: int) -> None:
    """End a request with an error; log it where it cannot be sent, since other requests must not fail by it."""
    try:
        response = pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:
        print(f"an error could not be sent ({error}): {message}", file=sys.stderr, flush=True)


def _scalar(request: Any, name: str, default: Any) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    values = tensor.as_numpy().ravel()
    if len(values) != 1:
        raise BadRequestError(f"{name}: one value is expected, {len(values)} came")
    return values[0].item() if isinstance(values[0], np.generic) else values[0]


def _text(request: Any, name: str) -> str | None:
    value = _scalar(request, name, None)
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequestError(f"{name}: it is not UTF-8") from None


def _filled(value: str) -> str:
    if not value.strip():
        raise BadRequestError("the prompt is empty")
    return value


def _messages(document: str) -> list[dict[str, str]]:
    messages = _parsed("messages", document)
    if not isinstance(messages, list) or not messages:
        raise BadRequestError('messages: a JSON list of {"role", "content"} with at least one entry is expected')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadRequestError(f'messages[{index}]: {{"role", "content"}} and nothing else is expected')
        if message["role"] not in ROLES:
            raise BadRequestError(f"messages[{index}]: the role is {message['role']!r}, known are {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise BadRequestError(f"messages[{index}]: the content is not text")
    if messages[-1]["role"] == "assistant":
        raise BadRequestError("messages: the last one is the assistant's own; end with what it is to answer")
    _filled(messages[-1]["content"])
    return messages


def _sampling(request: Any) -> Sampling:
    temperature = _scalar(request, "temperature", 0.0)
    top_p = _scalar(request, "top_p", 1.0)
    if not (math.isfinite(temperature) and 0 <= temperature <= 2):
        raise BadRequestError(f"temperature is {temperature:g}: give 0 (greedy) to 2")
    if not 0 < top_p <= 1:
        raise BadRequestError(f"top_p is {top_p:g}: give a number above 0, at most 1")
    return Sampling(temperature, top_p) if temperature >= GREEDY_BELOW else Sampling(0.0, 1.0)


def _stops(document: str | None) -> list[str]:
    stops = [] if document is None else _parsed("stop", document)
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequestError("stop: a JSON list of texts that are not empty is expected")
    if len(stops) > MAX_STOPS:
        raise BadRequestError(f"stop: {len(stops)} texts, at most {MAX_STOPS}")
    return stops


def _parsed(name: str, document: str) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"{name}: not JSON ({error})") from None
