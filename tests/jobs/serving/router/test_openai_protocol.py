"""OpenAI's requests, read or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation, Piece
from jobs.serving.router.limits import Limits
from jobs.serving.router.openai_protocol import Answer, read_request

CHAT = {"model": "kubectl", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "kubectl", "prompt": "hello"}
LIMITS = Limits(prompt_bytes=100)


def test_every_setting_reaches_the_model() -> None:
    asked = read_request(
        "chat",
        {
            **CHAT,
            "messages": [
                {"role": "developer", "content": "be short"},
                {
                    "role": "user",
                    "name": "kim",
                    "content": [{"type": "text", "text": "파드"}, {"type": "text", "text": "!"}],
                },
                {"role": "assistant", "content": "ok", "tool_calls": None},
            ],
            "max_completion_tokens": 5,
            "temperature": 1,
            "top_p": 0.5,
            "stop": "\n",
            "user": "somebody",
            "metadata": {"a": "b"},
        },
        LIMITS,
    )
    assert asked.generation == Generation(
        messages=[
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "파드!"},
            {"role": "assistant", "content": "ok"},
        ],
        max_tokens=5,
        temperature=1.0,
        top_p=0.5,
        stop=("\n",),
    )
    body = json.loads(asked.generation.body(stream=True))
    assert body["stream"] is True and body["max_tokens"] == 5
    assert json.loads(body["messages"]) == asked.generation.messages and json.loads(body["stop"]) == ["\n"]
    assert read_request("completions", {**COMPLETION, "prompt": ["hello"]}, LIMITS).generation.prompt == "hello"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [2, "1"]),
        ("tools", [[{"type": "function"}]]),
        ("tool_choice", ["required"]),
        ("functions", [[{}]]),
        ("response_format", [{"type": "json_object"}]),
        ("logprobs", [True, 0, 3]),
        ("top_logprobs", [2]),
        ("logit_bias", [{"50256": -100}]),
        ("frequency_penalty", [0.1]),
        ("presence_penalty", [-1]),
        ("echo", [True]),
        ("suffix", ["x"]),
        ("best_of", [2]),
        ("modalities", [["audio"]]),
        ("top_k", [5]),
        ("ignore_eos", [True]),
        ("min_tokens", [1]),
        ("stop_token_ids", [[2]]),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError) as caught:
            read_request("chat", {**CHAT, field: value}, LIMITS)
        assert (caught.value.status, caught.value.field) == (400, field)
        assert caught.value.message.startswith(f"{field}: ")


def test_values_that_change_nothing_are_taken() -> None:
    neutral = {"n": 1, "tools": [], "logprobs": False, "response_format": {"type": "text"}, "frequency_penalty": 0.0}
    neutral |= {"seed": 7, "ignore_eos": False, "min_tokens": 0, "stop_token_ids": []}
    assert read_request("chat", {**CHAT, **neutral}, LIMITS).generation == read_request("chat", CHAT, LIMITS).generation
    nulls = dict.fromkeys(("n", "tools", "logprobs", "logit_bias", "echo", "suffix", "stop", "stream", "max_tokens"))
    assert read_request("completions", {**COMPLETION, **nulls}, LIMITS).generation == Generation(prompt="hello")


@pytest.mark.parametrize(
    ("endpoint", "fields", "field"),
    [
        ("chat", {"model": 5}, "model"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": None}, "messages"),
        ("chat", {"messages": ["hello"]}, "messages[0]"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": ""}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "가" * 34}]}, "messages"),
        ("completions", {"prompt": "x" * 101}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": "\udc00"}, "prompt"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"max_tokens": 4097}, "max_tokens"),
        ("completions", {"max_tokens": True}, "max_tokens"),
        ("chat", {"max_completion_tokens": 4097}, "max_completion_tokens"),
        ("completions", {"temperature": 2.1}, "temperature"),
        ("completions", {"temperature": float("nan")}, "temperature"),
        ("completions", {"top_p": 0}, "top_p"),
        ("completions", {"seed": 7, "temperature": 0.5}, "seed"),
        ("chat", {"messages": [{"role": "user", "content": "x"}] * 257}, "messages"),
        ("completions", {"stop": [""]}, "stop"),
        ("completions", {"stop": ["x"] * 17}, "stop"),
        ("completions", {"stop": {"a": 1}}, "stop"),
        ("completions", {"stream": "yes"}, "stream"),
        ("completions", {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_what_is_wrong_is_named(endpoint: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(endpoint, {**(CHAT if endpoint == "chat" else COMPLETION), **fields}, LIMITS)
    assert (caught.value.status, caught.value.field) == (400, field)


@pytest.mark.parametrize("temperature", [0, 1e-38, 0.0099])
def test_temperatures_that_divide_by_nearly_nothing_are_greedy(temperature: float) -> None:
    asked = read_request("completions", {**COMPLETION, "temperature": temperature, "seed": 7}, LIMITS).generation
    assert asked.greedy and json.loads(asked.body(stream=False))["temperature"] == 0
    assert not read_request("completions", {**COMPLETION, "temperature": 0.01}, LIMITS).generation.greedy


def test_a_stream_tells_its_usage_only_when_asked() -> None:
    for options, expected in ((None, 0), ({"include_usage": False}, 0), ({"include_usage": True}, 1)):
        asked = read_request("chat", {**CHAT, "stream": True, "stream_options": options}, LIMITS)
        answer = Answer(asked)
        text = answer.opening() + answer.piece(Piece("a", "", 3, 1)) + answer.piece(Piece("", "length", 3, 2))
        events = [json.loads(line[6:]) for line in text.decode().split("\n\n") if line]
        assert [event["choices"][0]["delta"] for event in events if event["choices"]] == [
            {"role": "assistant", "content": ""},
            {"content": "a"},
            {},
        ]
        usages = [event["usage"] for event in events if event.get("usage")]
        assert usages == [{"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}] * expected
        assert len({event["id"] for event in events}) == 1
