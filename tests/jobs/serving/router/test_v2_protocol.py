"""The V2 protocol's tensors, read and written."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import serialize_byte_tensor

from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation, Piece
from jobs.serving.router.limits import Limits
from jobs.serving.router.v2_protocol import (
    OUTPUTS,
    decode_tensor,
    encode_tensor,
    read_generate,
    read_infer,
    write_infer,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
LIMITS = Limits()


@given(st.lists(TEXT))
def test_texts_are_laid_out_as_tritons_own_client_does(texts: list[str]) -> None:
    encoded = encode_tensor("BYTES", texts)
    if texts:
        array = np.array([text.encode() for text in texts], dtype=np.object_)
        assert encoded == serialize_byte_tensor(array).item()
    assert decode_tensor("BYTES", encoded, "text_input") == texts


@given(
    st.sampled_from(
        [("INT32", st.integers(-(2**31), 2**31 - 1)), ("FP32", st.floats(width=32, allow_nan=False))]
    ).flatmap(lambda kind: st.tuples(st.just(kind[0]), st.lists(kind[1])))
)
def test_numbers_come_back(tensor: tuple[str, list[float]]) -> None:
    datatype, values = tensor
    assert decode_tensor(datatype, encode_tensor(datatype, values), "x") == values


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        texts = decode_tensor("BYTES", data, "text_input")
    except RequestError as error:
        assert error.status == 400 and "text_input" in error.message
    else:
        assert encode_tensor("BYTES", texts) == data


def request_of(inputs: list[InferInput], outputs: list[InferRequestedOutput] | None = None) -> tuple[bytes, str | None]:
    """Body and header as the official client makes them."""
    body, json_size = InferenceServerClient.generate_request_body(inputs, outputs)
    return body, None if json_size is None else str(json_size)


def tensor(name: str, values: list[Any], datatype: str, binary: bool) -> InferInput:
    made = InferInput(name, [len(values), 1], datatype)
    kind = {"BYTES": np.object_, "INT32": np.int32, "FP32": np.float32}[datatype]
    made.set_data_from_numpy(np.array(values, dtype=kind).reshape(-1, 1), binary_data=binary)
    return made


@given(
    st.lists(st.tuples(TEXT, st.integers(1, 4096), st.floats(0, 2, width=32)), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_rows_are_read_as_the_official_client_writes_them(
    rows: list[tuple[str, int, float]], text_binary: bool, others_binary: bool, one_for_all: bool
) -> None:
    prompts = [prompt for prompt, _, _ in rows]
    tokens = [rows[0][1]] if one_for_all else [tokens for _, tokens, _ in rows]
    body, length = request_of(
        [
            tensor("max_tokens", tokens, "INT32", others_binary),
            tensor("text_input", prompts, "BYTES", text_binary),
            tensor("temperature", [temperature for _, _, temperature in rows], "FP32", others_binary),
        ]
    )
    request = read_infer(body, length, LIMITS)
    assert request.shape == [len(rows), 1]
    assert request.rows == [
        Generation(
            prompt=prompt,
            max_tokens=tokens[0] if one_for_all else tokens[row],
            temperature=rows[row][2] if rows[row][2] >= 0.01 else 0.0,
        )
        for row, prompt in enumerate(prompts)
    ]


@given(
    st.lists(st.builds(Piece, TEXT, st.just("stop"), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=5)
)
def test_answers_are_read_by_the_official_client(answers: list[Piece]) -> None:
    inputs = [tensor("text_input", ["x"] * len(answers), "BYTES", True)]
    for outputs in (
        None,
        [InferRequestedOutput("completion_tokens", binary_data=False), InferRequestedOutput("text_output")],
        [InferRequestedOutput("text_output", binary_data=False)],
    ):
        body, length = write_infer("kubectl", read_infer(*request_of(inputs, outputs), LIMITS), answers)
        result = InferenceServerClient.parse_response_body(body, header_length=length)
        names = [output["name"] for output in result.get_response()["outputs"]]
        assert names == ([output.name() for output in outputs] if outputs else list(OUTPUTS))
        texts = [
            value.decode() if isinstance(value, bytes) else value for value in result.as_numpy("text_output").flatten()
        ]
        assert texts == [answer.text for answer in answers]
        if "completion_tokens" in names:
            assert result.as_numpy("completion_tokens").tolist() == [[answer.completion_tokens] for answer in answers]


TEXT_INPUT = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "not an object"),
        ({}, "inputs: it must be a list"),
        ({"inputs": []}, "one of the inputs text_input and messages"),
        ({"inputs": [TEXT_INPUT, TEXT_INPUT]}, "unexpected or repeated input 'text_input'"),
        (
            {"inputs": [TEXT_INPUT, {"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]}]},
            "unexpected or repeated input 'seed'",
        ),
        ({"inputs": [{**TEXT_INPUT, "name": "INPUT0"}]}, "unexpected or repeated input 'INPUT0'"),
        ({"inputs": [{**TEXT_INPUT, "datatype": "FP32"}]}, "must be of datatype BYTES"),
        ({"inputs": [{**TEXT_INPUT, "shape": [2, 1]}]}, "has 1 values, its shape says [2, 1]"),
        ({"inputs": [{**TEXT_INPUT, "shape": [1, 2]}]}, "[rows, 1] or [rows]"),
        ({"inputs": [{**TEXT_INPUT, "shape": [10**9]}]}, "at most 32 are taken"),
        ({"inputs": [{**TEXT_INPUT, "shape": [-1, 1]}]}, "[rows, 1] or [rows]"),
        ({"inputs": [{**TEXT_INPUT, "data": [5]}]}, "must hold BYTES values"),
        ({"inputs": [{**TEXT_INPUT, "data": "x"}]}, "has no data"),
        ({"inputs": [{**TEXT_INPUT, "data": [""]}]}, "text_input: it is empty"),
        ({"inputs": [{**TEXT_INPUT, "parameters": {"binary_data_size": 5}}]}, "goes beyond the body"),
        ({"inputs": [{**TEXT_INPUT, "parameters": {"shared_memory_region": "r"}}]}, "shared memory is not offered"),
        ({"inputs": [TEXT_INPUT], "outputs": [{"name": "logits"}]}, "output 'logits'"),
        (
            {"inputs": [TEXT_INPUT], "outputs": [{"name": "text_output", "parameters": {"classification": 3}}]},
            "classification is not supported",
        ),
        (
            {"inputs": [TEXT_INPUT, {"name": "stream", "datatype": "BOOL", "shape": [1], "data": [True]}]},
            "only generate_stream",
        ),
        (
            {"inputs": [TEXT_INPUT, {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [4097]}]},
            "max_tokens: it must be a whole number from 1 to 4096",
        ),
        (
            {
                "inputs": [
                    {**TEXT_INPUT, "shape": [3], "data": ["a", "b", "c"]},
                    {"name": "max_tokens", "datatype": "INT32", "shape": [2], "data": [1, 2]},
                ]
            },
            "input 'max_tokens' has 2 rows, 'text_input' has 3",
        ),
    ],
)
def test_what_is_wrong_is_named(document: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_infer(json.dumps(document).encode(), None, LIMITS)
    assert caught.value.status == 400 and says in caught.value.message


def test_a_wrong_header_length_and_surplus_bytes_are_refused() -> None:
    body = json.dumps({"inputs": [TEXT_INPUT]}).encode()
    for length in ("-1", "1e3", "x", "9" * 400, "0" * 5000, str(len(body) + 1)):
        with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
            read_infer(body, length, LIMITS)
    with pytest.raises(RequestError, match="4 bytes of binary data belong to no input"):
        read_infer(body + struct.pack("<I", 0), str(len(body)), LIMITS)


def test_generate_takes_the_inputs_as_fields() -> None:
    asked = read_generate(
        json.dumps(
            {
                "id": "1",
                "messages": '[{"role": "user", "content": "파드를 보여줘"}]',
                "stop": '["\\n"]',
                "top_p": 1,
                "temperature": None,
            }
        ).encode(),
        LIMITS,
        may_stream=False,
    )
    assert asked == Generation(messages=[{"role": "user", "content": "파드를 보여줘"}], stop=("\n",), top_p=1.0)
    for body, says in (
        ({"text_input": "x", "max_token": 5}, "unexpected input 'max_token'"),
        ({"text_input": "x", "seed": 3}, "unexpected input 'seed'"),
        ({"text_input": "x", "messages": "[]"}, "one of the two"),
        ({"messages": [{"role": "user"}]}, "written as a text"),
        ({"messages": "["}, "not JSON"),
        ({"text_input": "x", "stream": True}, "only generate_stream"),
        ({"text_input": "x", "temperature": True}, "temperature"),
        ({"text_input": "\ud800"}, "not text"),
    ):
        with pytest.raises(RequestError, match=says):
            read_generate(json.dumps(body).encode(), LIMITS, may_stream=False)
