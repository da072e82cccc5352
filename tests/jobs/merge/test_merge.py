"""Merging: same logits, same bytes, and no merge of what does not belong together."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.naming import file_digest
from include.errors import DataError, DivergenceError
from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.hostile import Touch

Merge = Callable[..., Path]


def test_a_merged_model_answers_like_base_and_adapter_together(
    merge: Merge,
    config: dict[str, Any],
    base: Artifact,
    tuned: Artifact,
    data: Artifact,
    base_folder: Path,
    adapter_folder: Path,
    chat_template: str,
) -> None:
    folder = merge(config, base=base, tuned=tuned, data=data)

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.chat_template == chat_template
    merged = AutoModelForCausalLM.from_pretrained(folder / "model")
    plain = AutoModelForCausalLM.from_pretrained(base_folder / "model")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "show pod"}], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        untuned = plain(ids).logits
        expected = PeftModel.from_pretrained(plain, adapter_folder / "adapter")(ids).logits
        found = merged(ids).logits
    assert (found - expected).abs().max() < 1e-3
    assert (found - untuned).abs().max() > 0.1
    assert merged.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert merged.generation_config.pad_token_id == tokenizer.pad_token_id == 0

    parity = json.loads((folder / "parity.json").read_text())
    assert parity["prompts"] == 20
    assert 0 <= parity["max_logit_difference"] < 1e-3
    assert parity["top1_agreement"] == 1.0
    assert 0 <= parity["mean_kl"] < 1e-6
    assert {path.suffix for path in (folder / "model").iterdir()} == {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_merge_holds_the_same_weights_as_one_in_memory(
    merge: Merge, config: dict[str, Any], base: Artifact, tuned: Artifact, data: Artifact, dtype: str
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loose = {"prompts": 20, "max_logit_difference": 1.0, "max_kl": 0.1, "min_top1": 0.5}
    settings = {**config, "dtype": dtype, "parity": loose}
    inputs = {"base": base, "tuned": tuned, "data": data}
    whole = merge(settings, **inputs)
    streamed = merge({**settings, "stream_above": 0}, **inputs)

    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, streamed))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype
        # The two add up in another order, so bfloat16 may round to the neighbour.
        assert (found[name].float() - weight.float()).abs().max() <= (1e-6 if dtype == "float32" else 2**-7)
    assert (streamed / "model" / "config.json").read_text() == (whole / "model" / "config.json").read_text()
    assert AutoTokenizer.from_pretrained(streamed / "model").chat_template == config["chat_template"]
    loaded = AutoModelForCausalLM.from_pretrained(streamed / "model")
    assert loaded.generation_config.eos_token_id == 2
    parity = json.loads((streamed / "parity.json").read_text())
    assert parity["prompts"] == 4
    assert parity["max_logit_difference"] < (1e-3 if dtype == "float32" else 1.0)


def test_a_streamed_merge_that_says_something_else_is_refused(
    merge: Merge,
    config: dict[str, Any],
    base: Artifact,
    tuned: Artifact,
    data: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jobs.merge import streamed

    write = streamed.write
    monkeypatch.setattr(
        streamed, "write", lambda source, updates, *rest: write(source, dict(list(updates.items())[1:]), *rest)
    )
    with pytest.raises(DivergenceError, match="does not agree with the unmerged one"):
        merge({**config, "stream_above": 0}, base=base, tuned=tuned, data=data)


def test_the_same_spec_gives_the_same_bytes(
    merge: Merge,
    config: dict[str, Any],
    base: Artifact,
    tuned: Artifact,
    data: Artifact,
    make_artifact: Any,
    tmp_path: Path,
) -> None:
    first = merge(config, base=base, tuned=tuned, data=data)
    copy = make_artifact("another-place", folder=_folder_of(base))
    second = merge({**config, "max_tokens": 65}, base=copy, tuned=tuned, data=data)
    digests = [
        {path.relative_to(folder): file_digest(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (first, second)
    ]
    assert digests[0] == digests[1]
    assert str(tmp_path) not in "".join(path.read_text() for path in first.rglob("*.json"))


def test_a_fully_tuned_model_is_taken_as_it_is(
    merge: Merge, config: dict[str, Any], base: Artifact, data: Artifact, build_model: Any, make_artifact: Any
) -> None:
    from safetensors.torch import load_file

    whole = build_model(seed=5)
    folder = merge(config, base=base, tuned=make_artifact("whole", folder=whole), data=data)
    merged = load_file(folder / "model" / "model.safetensors")
    given = load_file(whole / "model" / "model.safetensors")
    assert merged.keys() == given.keys()
    assert all(merged[name].equal(given[name]) for name in given)


@pytest.mark.remedy("set merge.dtype: float32, or other limits in merge.parity")
def test_weights_rounded_to_bfloat16_fail_the_limits_of_float32(
    merge: Merge, config: dict[str, Any], base: Artifact, tuned: Artifact, data: Artifact
) -> None:
    inputs = {"base": base, "tuned": tuned, "data": data}
    says = r"difference .* \(limit 0.001\).*nothing was committed: set merge\.dtype: float32, or other limits in merge"
    with pytest.raises(DivergenceError, match=says):
        merge({**config, "dtype": "bfloat16"}, **inputs)
    loose = {"prompts": 20, "max_logit_difference": 1.0, "max_kl": 0.1, "min_top1": 0.5}
    folder = merge({**config, "dtype": "bfloat16", "parity": loose}, **inputs)
    parity = json.loads((folder / "parity.json").read_text())
    assert 1e-3 < parity["max_logit_difference"] < 1.0
    merge({**config, "dtype": "float32"}, **inputs)


@pytest.mark.remedy("set other limits in merge.parity")
def test_limits_that_nothing_keeps_are_named_as_what_to_set(
    merge: Merge, config: dict[str, Any], base: Artifact, tuned: Artifact, data: Artifact
) -> None:
    inputs = {"base": base, "tuned": tuned, "data": data}
    strict = {"prompts": 20, "max_logit_difference": 1e-12}
    with pytest.raises(DivergenceError, match=r"nothing was committed: set other limits in merge\.parity$") as refused:
        merge({**config, "parity": strict}, **inputs)
    found = float(re.search(r"largest logit difference (\S+) ", str(refused.value))[1])
    merge({**config, "parity": {**strict, "max_logit_difference": 1.1 * found}}, **inputs)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"hidden_size": 48}, "has the shape"),
        ({"layers": 1}, "is in the adapter and not in the base model"),
        ({"layers": 3}, "is in the base model and not in the adapter"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    merge: Merge,
    config: dict[str, Any],
    tuned: Artifact,
    data: Artifact,
    build_model: Any,
    make_artifact: Any,
    shape: dict[str, int],
    named: str,
) -> None:
    other = make_artifact("other", folder=build_model(**shape))
    for stream_above in (10**9, 0):
        with pytest.raises(DataError, match=f"{named}.*trained on another base model"):
            merge({**config, "stream_above": stream_above}, base=other, tuned=tuned, data=data)


@scenario(
    given="an adapter, and a base model of the same shape with other weights",
    when="the two are to be merged",
    then="they are refused with 64, and both bases are named",
)
def test_an_adapter_that_names_another_base_of_the_same_shape_is_refused(
    refused: Callable[..., str],
    config: dict[str, Any],
    base: Artifact,
    data: Artifact,
    build_model: Any,
    make_artifact: Any,
    tuned_on: Any,
) -> None:
    other = make_artifact("other", folder=build_model(seed=7))
    message = refused("merge", config, {"base": base, "tuned": tuned_on(other), "data": data}, 64)
    assert f"was tuned on the base model {other.digest[:12]}" in message
    assert f"gives {base.digest[:12]} (file://store/base): merge it into the base it was tuned on" in message


def test_a_tokenizer_larger_than_the_model_is_refused(
    merge: Merge, config: dict[str, Any], base: Artifact, data: Artifact, build_model: Any, make_artifact: Any
) -> None:
    small = build_model(vocabulary=300)
    tokenizer = json.loads((small / "model" / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 262 + number, "content": f"<|extra-{number}|>"} for number in range(40)
    ]
    (small / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="the tokenizer has 302 tokens, the model 300"):
        merge(config, base=base, tuned=make_artifact("whole", folder=small), data=data)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            name,
            says,
            id=when,
            marks=scenario(
                given="an adapter that somebody tuned elsewhere",
                when=when,
                then="the merge ends with 65, and it never runs",
            ),
        )
        for name, when, says in [
            ("adapter_model.bin", "its weights are a pickle", "adapter_model.bin is a pickle"),
            (
                "adapter_model.safetensors",
                "its safetensors file is a pickle in truth",
                "adapter_model.safetensors is not a whole safetensors file",
            ),
        ]
    ],
)
def test_pickles_are_refused(
    refused: Callable[..., str],
    config: dict[str, Any],
    base: Artifact,
    data: Artifact,
    adapter_folder: Path,
    make_artifact: Any,
    tmp_path: Path,
    name: str,
    says: str,
) -> None:
    marker = tmp_path / "it-ran"
    pickled = make_artifact("pickled", {f"adapter/{name}": pickle.dumps(Touch(marker))}, folder=adapter_folder)
    assert says in refused("merge", config, {"base": base, "tuned": pickled, "data": data})
    assert not marker.exists()


def _with_nan(weights: bytes) -> bytes:
    from safetensors.torch import load, save

    tensors = load(weights)
    tensors[sorted(tensors)[3]][0, 0] = float("nan")
    return save(tensors)


@pytest.mark.remedy("the training diverged; lower finetune.learning_rate", "run the DAG again with refresh: [finetune]")
@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (
            _with_nan,
            DivergenceError,
            r"holds NaN or Inf \(1 of .*: the training diverged; lower finetune\.learning_rate$",
        ),
        (
            lambda weights: weights[:-9],
            DataError,
            r"not a whole safetensors file .*again with refresh: \[finetune\]$",
        ),
    ],
    ids=["NaN", "cut off"],
)
def test_a_damaged_adapter_is_refused_and_one_that_is_tuned_anew_is_taken(
    merge: Merge,
    config: dict[str, Any],
    base: Artifact,
    tuned: Artifact,
    data: Artifact,
    adapter_folder: Path,
    make_artifact: Any,
    damage: Callable[[bytes], bytes],
    error: type[Exception],
    says: str,
) -> None:
    weights = damage((adapter_folder / "adapter" / "adapter_model.safetensors").read_bytes())
    broken = make_artifact("broken", {"adapter/adapter_model.safetensors": weights}, folder=adapter_folder)
    with pytest.raises(error, match=says):
        merge(config, base=base, tuned=broken, data=data)
    merge(config, base=base, tuned=tuned, data=data)


def test_no_held_out_rows_is_an_error(
    merge: Merge, config: dict[str, Any], base: Artifact, tuned: Artifact, make_artifact: Any
) -> None:
    with pytest.raises(DataError, match=r"heldout\.jsonl is empty"):
        merge(config, base=base, tuned=tuned, data=make_artifact("empty", {"heldout.jsonl": ""}))


def _folder_of(artifact: Artifact) -> Path:
    (attempt,) = (Path(artifact.uri.removeprefix("file://")) / "attempts").iterdir()
    return attempt / "files"
