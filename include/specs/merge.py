"""Merge an adapter into its base (or take a fully tuned model) and prove that the result says the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Artifact, FileContent, JobSpec
from include.specs.base import Inputs as BaseInputs


class Parity(Model):
    """Limits on merged against unmerged, over the answer positions of `prompts` held-out rows.

    The defaults hold for float32, where the two differ by rounding only (seen: below 1e-4); weights kept in bfloat16
    carry eight bits and need limits of their own.

    Attributes:
        prompts: how many held-out rows of at most `max_tokens` tokens; of a model that is streamed at most 4.
        max_logit_difference: largest absolute difference of any logit.
        max_kl: mean Kullback-Leibler divergence a token, in nats.
        min_top1: share of positions whose most likely token is the same.
    """

    prompts: Annotated[int, Field(ge=1)] = 64
    max_logit_difference: Annotated[float, Field(gt=0)] = 1e-3
    max_kl: Annotated[float, Field(gt=0)] = 1e-6
    min_top1: Annotated[float, Field(gt=0, le=1)] = 0.999


class Config(Model):
    """`dtype` is what the merged weights are kept in; merging itself is done in float32.

    Attributes:
        stream_above: bytes of weights above which the model is never in memory as a whole: its tensors are merged
            one after the other, and the proof runs layer by layer. An adapter or model that this cannot be done with
            is loaded whole, whatever its size.
    """

    parity: Parity = Parity()
    chat_template: Annotated[str, FileContent("templates")]
    max_tokens: Annotated[int, Field(ge=1)]
    dtype: Literal["float32", "bfloat16"] = "float32"
    stream_above: Annotated[int, Field(ge=0)] = 2_000_000_000


class Inputs(BaseInputs):
    base: Artifact
    tuned: Artifact
    data: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `model/`, a Hugging Face folder (safetensors, tokenizer with chat template, generation config), and
    `parity.json`: {"prompts", "positions", "max_logit_difference", "mean_kl", "top1_agreement"}. Failing parity is
    exit 70 and no artifact.
    """

    job: Literal["merge"] = "merge"
