"""A release's `config.pbtxt`, written from a typed description by way of Triton's own protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from google.protobuf import text_format
from pydantic import Field
from tritonclient.grpc import model_config_pb2

from include.errors import ConfigurationError
from include.model import Model
from include.release.rollouts import Drill

_INPUTS = {
    "text_input": "TYPE_STRING",
    "messages": "TYPE_STRING",
    "max_tokens": "TYPE_INT32",
    "temperature": "TYPE_FP32",
    "top_p": "TYPE_FP32",
    "stop": "TYPE_STRING",
    "stream": "TYPE_BOOL",
}
_OUTPUTS = {
    "text_output": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "prompt_tokens": "TYPE_INT32",
    "completion_tokens": "TYPE_INT32",
}


class Serving(Model):
    """How a release is run.

    Attributes:
        max_batch: requests answered together; smaller batches are fine, so there is no preferred size.
        queue_delay_microseconds: how long the first of a batch waits for others while the model is idle.
        queue_size: where more requests wait, the model refuses a new one at once (see `model.py`).
        queue_seconds: the model refuses a request that waited longer, once its turn comes.
        instances: copies of the engine, each in a process of its own.
        threads: of each instance.
    """

    max_batch: Annotated[int, Field(ge=1, le=256)] = 32
    queue_delay_microseconds: Annotated[int, Field(ge=0)] = 0
    queue_size: Annotated[int, Field(ge=1)] = 256
    queue_seconds: Annotated[float, Field(gt=0)] = 10.0
    instances: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1


DEFAULT = Serving()


class Rehearsal(Model):
    """When a drill begins to misbehave: after so many requests and so many seconds since it was loaded."""

    drill: Drill
    after_requests: Annotated[int, Field(ge=0)] = 40
    after_seconds: Annotated[float, Field(ge=0)] = 6.0


def render(name: str, engine: Path, serving: Serving, rehearsal: Rehearsal) -> str:
    """Return the text of `config.pbtxt` for the release `name` with the engine in the folder `engine`."""
    config = model_config_pb2.ModelConfig(
        name=name,
        backend="python",
        max_batch_size=serving.max_batch,
        input=[{"name": key, "data_type": kind, "dims": [1], "optional": True} for key, kind in _INPUTS.items()],
        output=[{"name": key, "data_type": kind, "dims": [1]} for key, kind in _OUTPUTS.items()],
        instance_group=[{"count": serving.instances, "kind": "KIND_CPU"}],
        dynamic_batching={"max_queue_delay_microseconds": serving.queue_delay_microseconds},
        model_transaction_policy={"decoupled": True},
        version_policy={"specific": {"versions": [1]}},
        parameters={key: {"string_value": value} for key, value in _parameters(engine, serving, rehearsal)},
    )
    return text_format.MessageToString(config, as_utf8=True)


def parse(document: str, *, where: str) -> Any:
    """Return a `config.pbtxt` as Triton's ModelConfig. Raises ConfigurationError where it is not one."""
    try:
        return text_format.Parse(document, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ConfigurationError(
            f"{where} is not a model configuration of Triton ({error}): remove the release and install it again"
        ) from None


def _parameters(engine: Path, serving: Serving, rehearsal: Rehearsal) -> Iterator[tuple[str, str]]:
    yield "engine", str(engine)
    yield "threads", str(serving.threads)
    yield "queue_size", str(serving.queue_size)
    yield "queue_seconds", str(serving.queue_seconds)
    if rehearsal.drill != "none":
        yield "drill", rehearsal.drill
        yield "drill_after_requests", str(rehearsal.after_requests)
        yield "drill_after_seconds", str(rehearsal.after_seconds)
