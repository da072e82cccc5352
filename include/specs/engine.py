"""Build an inference engine out of a merged model, and prove that it says the same."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from include.model import Model
from include.specs.base import Artifact, DefaultOf, JobSpec
from include.specs.base import Inputs as BaseInputs


class Parity(Model):
    """Limits on the engine against the merged model in float32, both stopping at the end of text.

    The defaults leave int8 room (seen on the demo's model: mean KL 7e-6 nats, every other figure perfect) and stop what
    changes answers. Long answers part after one token that was nearly a tie: for them lower `min_same_text`.

    Attributes:
        prompts: held-out rows over whose answer positions probabilities are compared; the first ones.
        max_mean_kl: mean Kullback-Leibler divergence a position, merged model against engine, in nats.
        min_top1: share of positions whose most likely token is the same.
        min_same_text: share of the scored rows whose greedy answers are the same text.
        max_score_loss: exact match that the engine may lose, over the scored rows.
    """

    prompts: Annotated[int, Field(ge=1)] = 256
    max_mean_kl: Annotated[float, Field(gt=0)] = 1e-3
    min_top1: Annotated[float, Field(gt=0, le=1)] = 0.99
    min_same_text: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_score_loss: Annotated[float, Field(ge=0, lt=1)] = 0.01


class Config(Model):
    """int8 is the default: on the demo's model it answers like float32 and costs less at every batch size.

    Attributes:
        compute_type: of the weights and of the arithmetic.
        max_tokens: of prompt and answer together, as served; at most what the model's positions reach.
        max_new_tokens: the longest answer that serving allows; at least what the evaluation allowed.
        rows: held-out rows to score, in file order; at most those that the evaluation scored.
        batch_size: rows answered at a time; part of the identity, because sums in another order differ in their
            last digits.
    """

    builder: Literal["ctranslate2"] = "ctranslate2"
    compute_type: Literal["int8", "float32"] = "int8"
    max_tokens: Annotated[int, Field(ge=2)]
    max_new_tokens: Annotated[int, Field(ge=1), DefaultOf("evaluate")] = 48
    rows: Annotated[int, Field(ge=1), DefaultOf("evaluate")] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 32
    parity: Parity = Parity()

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> Config:
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt within max_tokens "
                f"{self.max_tokens}: lower engine.max_new_tokens, or raise engine.max_tokens"
            )
        return self


class Inputs(BaseInputs):
    """`merged` is the model, `evaluation` its answers and scores on the held-out rows of `data`."""

    merged: Artifact
    data: Artifact
    evaluation: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: what a server needs and nothing else. Failing parity is exit 70 and no artifact.

    `engine/`: the builder's own files.
    `tokenizer.json`, `chat_template.jinja`: the merged model's; jobs/common/engine_runtime/text.py reads them.
    `generation.json`: {"end_ids": [int], "max_tokens", "max_new_tokens", "special_tokens": {name: text}}.
    `golden.jsonl`: {"id", "messages" (without the answer), "reference", "answer", "exact_match": 0 or 1} a line;
    `answer` is the engine's own greedy one, white space at its ends removed.
    `build.json`: {"builder", "version", "compute_type", "arch", "isa", "cpu_flags"}. A machine whose `version` of the
    builder's library, `arch` or `cpu_flags` are others, fewer or more, is refused by
    jobs/common/engine_runtime/hardware.py; `isa`, what the library chose by them, is for the reader.
    `parity.json`: {"prompts", "positions", "mean_kl", "top1_agreement", "rows", "same_text", "merged_exact_match",
    "engine_exact_match", "lost": rows right before and wrong now, "won": the other way round, "score_loss",
    "score_loss_upper": upper end of its 95 % interval}.
    """

    memory_key: ClassVar[str | None] = "engine.batch_size"
    job: Literal["engine"] = "engine"
