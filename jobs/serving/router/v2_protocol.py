"""The V2 inference protocol with its binary tensors and generate extensions, for text models.

Triton refuses `infer` to decoupled models over HTTP, so the router implements it: every row of the tensors is a request
for text of its own.
Sources: https://github.com/kserve/open-inference-protocol and Triton's `protocol/extension_binary_data.md`,
`protocol/extension_generate.md`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation, Piece, make_generation, read_json, read_object
from jobs.serving.router.limits import Limits

HEADER = "Inference-Header-Content-Length"
VERSION = "1"
"""The only version of every public model: clients cannot choose the release."""

INPUTS: Mapping[str, str] = {
    "text_input": "BYTES",
    "messages": "BYTES",
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "stop": "BYTES",
    "stream": "BOOL",
}
"""Datatype of each input; BYTES are UTF-8, `messages` and `stop` JSON lists."""

OUTPUTS: Mapping[str, str] = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "prompt_tokens": "INT32",
    "completion_tokens": "INT32",
}

_FORMATS = {"INT32": "i", "FP32": "f", "BOOL": "?"}
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "BYTES": (str,),
    "INT32": (int,),
    "FP32": (int, float),
    "BOOL": (bool,),
}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An `infer`: one request for text a row.

    Attributes:
        shape: of the prompts, and so of the outputs.
        outputs: (name, whether it goes out in binary form).
    """

    id: str | None
    rows: list[Generation]
    shape: list[int]
    outputs: list[tuple[str, bool]]


def read_infer(body: bytes, header_length: str | None, limits: Limits) -> InferRequest:
    """Return the request in the body of an `infer`. Raises RequestError (400) naming the tensor that is wrong."""
    header, binary = _split(body, header_length)
    document = read_object(header)
    parameters = _object(document.get("parameters"), "parameters")
    tensors, shapes = _read_inputs(document.get("inputs"), binary, limits.rows)
    prompts = [name for name in ("text_input", "messages") if name in tensors]
    if len(prompts) != 1:
        raise RequestError(400, "send one of the inputs text_input and messages")
    shape = shapes[prompts[0]]
    number = len(tensors[prompts[0]])
    rows = []
    for row in range(number):
        values = {}
        for name, tensor in tensors.items():
            if len(tensor) not in (1, number):
                raise RequestError(400, f"input {name!r} has {len(tensor)} rows, {prompts[0]!r} has {number}")
            values[name] = tensor[row if len(tensor) == number else 0]
        rows.append(_generation(values, limits, may_stream=False))
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise RequestError(400, "id: it must be a text")
    binary_default = parameters.get("binary_data_output") is True
    return InferRequest(identifier, rows, shape, _read_outputs(document.get("outputs"), binary_default))


def write_infer(public: str, request: InferRequest, answers: Sequence[Piece]) -> tuple[bytes, int | None]:
    """Return the body of the response, and the length of its JSON part where binary data follow."""
    outputs, blobs = [], []
    for name, binary in request.outputs:
        values = [_value(answer, name) for answer in answers]
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": request.shape}
        if binary:
            blob = encode_tensor(OUTPUTS[name], values)
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            output["data"] = values
        outputs.append(output)
    document: dict[str, Any] = {"model_name": public, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    header = json.dumps(document).encode()
    return b"".join([header, *blobs]), len(header) if blobs else None


def read_generate(body: bytes, limits: Limits, *, may_stream: bool) -> Generation:
    """Return the request in the body of `generate` or `generate_stream`.

    Raises:
        RequestError: 400, naming the field that is wrong.
    """
    values = {name: value for name, value in read_object(body).items() if value is not None}
    for name in values.keys() - INPUTS.keys() - {"id", "parameters"}:
        raise RequestError(400, f"unexpected input {name!r}: the inputs are {', '.join(INPUTS)}", field=name)
    return _generation({name: value for name, value in values.items() if name in INPUTS}, limits, may_stream=may_stream)


def write_generate(public: str, piece: Piece) -> dict[str, Any]:
    """Return an answer, or a piece of a stream, as JSON."""
    return {
        "model_name": public,
        "model_version": VERSION,
        **{name: _value(piece, name) for name in OUTPUTS},
    }


def model_metadata(public: str) -> dict[str, Any]:
    """Return the metadata of the public model, as the KServe protocol (v2) has it."""
    return {
        "name": public,
        "versions": [VERSION],
        "platform": "anemone",
        "inputs": [{"name": name, "datatype": datatype, "shape": [-1, 1]} for name, datatype in INPUTS.items()],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1, 1]} for name, datatype in OUTPUTS.items()],
    }


SERVER_METADATA = {"name": "anemone", "version": VERSION, "extensions": ["binary_tensor_data", "generate"]}


def encode_tensor(datatype: str, values: Sequence[Any]) -> bytes:
    """Return the values in binary form: little-endian, each of BYTES (here texts) after its length in 4 bytes."""
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)


def decode_tensor(datatype: str, data: bytes, name: str) -> list[Any]:
    """Return the values of a binary tensor, BYTES as texts.

    Raises:
        RequestError: 400, its bytes are not a whole number of values.
    """
    if datatype != "BYTES":
        size = struct.calcsize(f"<{_FORMATS[datatype]}")
        if len(data) % size:
            raise RequestError(
                400, f"input {name!r} has {len(data)} bytes, which is not a whole number of {datatype} values"
            )
        return list(struct.unpack(f"<{len(data) // size}{_FORMATS[datatype]}", data))
    values, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise RequestError(400, f"input {name!r} ends within the length of a value")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + length > len(data):
            raise RequestError(400, f"input {name!r} ends within a value of {length} bytes")
        try:
            values.append(data[at : at + length].decode())
        except UnicodeDecodeError:
            raise RequestError(400, f"input {name!r} holds bytes that are not UTF-8") from None
        at += length
    return values


def _generation(values: dict[str, Any], limits: Limits, *, may_stream: bool) -> Generation:
    stream = values.pop("stream", False)
    if not isinstance(stream, bool):
        raise RequestError(400, "stream: it must be true or false", field="stream")
    if stream and not may_stream:
        raise RequestError(400, "stream: only generate_stream answers in pieces", field="stream")
    for name in ("messages", "stop"):
        if name in values:
            values[name] = _json_text(values[name], name)
    return make_generation(limits, prompt=values.pop("text_input", None), names={"prompt": "text_input"}, **values)


def _json_text(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        raise RequestError(400, f"{name}: it must be a JSON list, written as a text", field=name)
    try:
        return read_json(value)
    except RequestError:
        raise RequestError(400, f"{name}: the text is not JSON", field=name) from None


def _value(piece: Piece, output: str) -> Any:
    return piece.text if output == "text_output" else getattr(piece, output)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    sound = header_length.isascii() and header_length.isdigit() and len(header_length) <= 12
    if not sound or int(header_length) > len(body):
        raise RequestError(400, f"{HEADER} must be a number of bytes within the body")
    return body[: int(header_length)], body[int(header_length) :]


def _read_inputs(inputs: Any, binary: bytes, max_rows: int) -> tuple[dict[str, list[Any]], dict[str, list[int]]]:
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RequestError(400, "inputs: it must be a list of tensors")
    tensors: dict[str, list[Any]] = {}
    shapes: dict[str, list[int]] = {}
    at = 0
    for tensor in inputs:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in INPUTS or name in tensors:
            raise RequestError(
                400, f"unexpected or repeated input {str(name)[:64]!r}: the inputs are {', '.join(INPUTS)}"
            )
        if tensor.get("datatype") != INPUTS[name]:
            raise RequestError(400, f"input {name!r} must be of datatype {INPUTS[name]}")
        shapes[name] = _shape(tensor.get("shape"), name, max_rows)
        parameters = _object(tensor.get("parameters"), f"the parameters of input {name!r}")
        _refuse_shared_memory(parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            values = _flat(tensor.get("data"), INPUTS[name], name)
        else:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0 or at + size > len(binary):
                raise RequestError(400, f"input {name!r}: binary_data_size goes beyond the body")
            values = decode_tensor(INPUTS[name], binary[at : at + size], name)
            at += size
        if len(values) != math.prod(shapes[name]):
            raise RequestError(400, f"input {name!r} has {len(values)} values, its shape says {shapes[name]}")
        tensors[name] = values
    if at != len(binary):
        raise RequestError(400, f"{len(binary) - at} bytes of binary data belong to no input")
    return tensors, shapes


def _read_outputs(outputs: Any, binary_default: bool) -> list[tuple[str, bool]]:
    if not outputs:
        return [(name, binary_default) for name in OUTPUTS]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError(400, "outputs: it must be a list of objects")
    wanted: dict[str, bool] = {}
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in wanted:
            raise RequestError(
                400, f"unexpected or repeated output {str(name)[:64]!r}: the outputs are {', '.join(OUTPUTS)}"
            )
        parameters = _object(output.get("parameters"), f"the parameters of output {name!r}")
        _refuse_shared_memory(parameters)
        if parameters.get("classification"):
            raise RequestError(400, f"output {name!r}: classification is not supported")
        wanted[name] = parameters.get("binary_data", binary_default) is True
    return list(wanted.items())


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise RequestError(400, "shared memory is not offered: send the data in the request")


def _shape(value: Any, name: str, max_rows: int) -> list[int]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in value)
        or (len(value) == 2 and value[1] != 1)
    ):
        raise RequestError(400, f"input {name!r}: the shape must be [rows, 1] or [rows]")
    if value[0] > max_rows:
        raise RequestError(400, f"input {name!r} has {value[0]} rows, at most {max_rows} are taken")
    return value


def _flat(data: Any, datatype: str, name: str) -> list[Any]:
    if not isinstance(data, list):
        raise RequestError(400, f"input {name!r} has no data")
    values = [value for row in data for value in (row if isinstance(row, list) else [row])]
    for value in values:
        if not isinstance(value, _JSON_TYPES[datatype]) or (isinstance(value, bool) and datatype != "BOOL"):
            raise RequestError(400, f"input {name!r} must hold {datatype} values")
    return values


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(400, f"{where}: it must be an object")
    return value
