"""The job engine: what it builds answers like its source, or nothing is committed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.naming import file_digest
from include.artifacts.store import Store
from include.errors import AnemoneError, ConfigurationError, DataError, DivergenceError
from include.events import parse_fields
from include.specs.base import Artifact
from jobs.common.engine_runtime import text
from jobs.common.engine_runtime.hardware import require_hardware

Build = Callable[..., Path]


@pytest.mark.parametrize("compute_type", ["int8", "float32"])
def test_an_engine_gives_the_merged_models_answers(
    build: Build, config: dict[str, Any], data: Artifact, scores: list[Any], compute_type: str
) -> None:
    folder = build({**config, "compute_type": compute_type})
    assert sorted(path.name for path in folder.iterdir()) == [
        "build.json",
        "chat_template.jinja",
        "engine",
        "generation.json",
        "golden.jsonl",
        "parity.json",
        "tokenizer.json",
    ]
    golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    heldout = [json.loads(line) for line in (_folder_of(data) / "heldout.jsonl").read_text().splitlines()]
    assert [line["id"] for line in golden] == [row["id"] for row in heldout]
    assert [line["messages"] for line in golden] == [row["messages"][:-1] for row in heldout]
    assert [line["reference"] for line in golden] == [row["messages"][-1]["content"] for row in heldout]
    assert [line["exact_match"] for line in golden] == [1] * 10 + [0] == [one.exact_match for one in scores]
    assert [line["answer"] for line in golden[:10]] == [line["reference"] for line in golden[:10]]
    assert json.loads((folder / "generation.json").read_text()) == {
        "end_ids": [2],
        "max_tokens": 96,
        "max_new_tokens": 32,
        "special_tokens": {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
    }
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["rows"] == parity["prompts"] == 11
    assert 0 <= parity["mean_kl"] < (1e-3 if compute_type == "int8" else 1e-10)
    assert parity["top1_agreement"] == 1.0
    # int8 may word anew what the model does not know.
    assert parity["same_text"] >= (10 / 11 if compute_type == "int8" else 1.0)
    assert parity["engine_exact_match"] == pytest.approx(10 / 11)
    assert (parity["lost"], parity["won"]) == (0, 0)
    assert 0 < parity["score_loss_upper"] < 0.5


def test_the_engine_can_be_served_from_its_own_files_alone(build: Build, config: dict[str, Any]) -> None:
    import ctranslate2

    folder = build(config)
    built = json.loads((folder / "build.json").read_text())
    require_hardware(built)
    assert built["isa"] in {"GENERIC", "AVX", "AVX2", "AVX512"}
    served = text.load(folder)
    prompt = served.prompt_ids([{"role": "user", "content": "drop 결제 서버"}])
    engine = ctranslate2.Generator(str(folder / "engine"), compute_type=built["compute_type"])
    ends = json.loads((folder / "generation.json").read_text())["end_ids"]
    (result,) = engine.generate_batch(
        [served.tokens(prompt)], end_token=ends, max_length=32, include_prompt_in_result=False
    )
    assert served.decode(result.sequences_ids[0]).strip() == "delete 결제 서버"


def test_the_same_model_gives_the_same_bytes(
    build: Build, config: dict[str, Any], make_artifact: Any, merged: Artifact
) -> None:
    first = build(config)
    other_place = make_artifact("another-place", folder=_folder_of(merged))
    second = build({**config, "parity": {"min_top1": 0.9}}, merged=other_place)
    assert first != second
    assert _digests(first) == _digests(second)


def test_it_tells_its_progress_and_measures_speed(
    build: Build, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build(config)
    lines = capsys.readouterr().out.splitlines()
    events = [line.split(" ", 1)[0] for line in lines]
    assert [event for event in events if event != "answered"] == [
        "started",
        "held_out",
        "building",
        "built",
        "text_proven",
        "compared",
        "finished",
        "committed",
    ]
    progress = [float(fields["progress"]) for line in lines if "progress" in (fields := parse_fields(line))]
    assert progress == sorted(progress)
    metrics = json.loads((folder.parents[2] / "manifest.json").read_text())["metrics"]
    assert metrics["engine_exact_match"] == metrics["merged_exact_match"]
    assert metrics["same_tokens"] > 0
    assert metrics["tokens_per_cpu_second_batch_1"] > 0
    assert metrics["tokens_per_cpu_second_batch_16"] > 0


def test_failing_parity_ends_with_70_and_nothing_committed(
    run_job: Any, config: dict[str, Any], merged: Artifact, data: Artifact, evaluated: Any
) -> None:
    inputs = {"merged": merged, "data": data, "evaluation": evaluated(merged, data)}
    outcome = run_job("engine", {**config, "parity": {"max_mean_kl": 1e-12}}, inputs, expect=70)
    assert outcome.manifest is None
    assert "mean KL" in outcome.error
    assert "(limit 1e-12)" in outcome.error
    assert "nothing was committed" in outcome.error


def test_answers_that_are_not_the_engines_fail_parity(
    build: Build, config: dict[str, Any], merged: Artifact, data: Artifact, evaluated: Any, scores: list[Any]
) -> None:
    """As if the engine had two answers wrong: one that was right, and one that was wrong before."""
    others = [*scores]
    others[10] = others[10]._replace(exact_match=1, text="nothing it ever saw")
    others[0] = others[0]._replace(exact_match=0, text="something else")
    evaluation = evaluated(merged, data, others)
    with pytest.raises(
        DivergenceError,
        match=r"same greedy text 0\.8182 \(limit 0\.9\), exact match 0\.9091 → 0\.9091, 1 rows lost and 1 won, a loss "
        r"of 0\.0000",
    ):
        build({**config, "compute_type": "float32"}, evaluation=evaluation)
    others[0] = scores[0]
    with pytest.raises(DivergenceError, match=r"1 rows lost and 0 won, a loss of 0\.0909 \(limit 0\.01;"):
        build({**config, "parity": {"min_same_text": 0.5}}, evaluation=evaluated(merged, data, others))


def test_an_evaluation_of_another_model_is_refused(
    build: Build, config: dict[str, Any], data: Artifact, merged: Artifact, evaluated: Any, make_artifact: Any
) -> None:
    other = make_artifact("other", {"model/README.md": "another"}, folder=_folder_of(merged))
    with pytest.raises(
        ConfigurationError, match=rf"evaluated the model {other.digest[:12]}.*gives {merged.digest[:12]}"
    ):
        build(config, evaluation=evaluated(other, data))


@pytest.mark.remedy("run release with the override engine.max_new_tokens: …")
def test_limits_that_the_evaluation_went_beyond_are_refused(build: Build, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"max_new_tokens: 23 is less than the 24") as refused:
        build({**config, "max_new_tokens": 23})
    build({**config, **followed(refused.value)})


def followed(refusal: Exception) -> dict[str, Any]:
    """The keys of the engine's configuration that a message says to override, with the values that it gives."""
    remedy = re.search(r"run release with the override engine\.(\w+): (\w+)", str(refusal))
    assert remedy is not None, refusal
    return {remedy[1]: int(remedy[2]) if remedy[2].isdecimal() else remedy[2]}


@pytest.mark.remedy("run release with the override engine.max_tokens: …")
@pytest.mark.parametrize(
    ("max_tokens", "named"),
    [(46, "has a prompt of .* is over 46: run release"), (129, "129 is more than the model's 128")],
)
def test_a_length_that_does_not_fit_is_refused(
    build: Build, config: dict[str, Any], max_tokens: int, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as refused:
        build({**config, "max_tokens": max_tokens})
    build({**config, **followed(refused.value)})


@pytest.mark.remedy("run release with the override engine.compute_type: float32, or with other limits in engine.parity")
@pytest.mark.remedy("run release with other limits in engine.parity among its overrides")
def test_what_int8_loses_float32_keeps_and_other_limits_allow(build: Build, config: dict[str, Any]) -> None:
    strict = {**config, "parity": {"max_mean_kl": 1e-9}}
    with pytest.raises(DivergenceError, match=r"or with other limits in engine\.parity$") as refused:
        build({**strict, "compute_type": "int8"})
    build({**strict, **followed(refused.value)})
    build({**config, "compute_type": "int8", "parity": {"max_mean_kl": loosened(refused.value)}})

    exact = {**config, "compute_type": "float32"}
    with pytest.raises(DivergenceError, match=r"with other limits in engine\.parity among its overrides$") as refused:
        build({**exact, "parity": {"max_mean_kl": 1e-20}})
    build({**exact, "parity": {"max_mean_kl": loosened(refused.value)}})


def loosened(refusal: Exception) -> float:
    """A limit that the mean KL in a message keeps."""
    return 1.1 * float(re.search(r"mean KL (\S+) nats", str(refusal))[1])


@pytest.mark.remedy("run customize again with refresh: [evaluate]")
@pytest.mark.remedy("does not exist: run customize again, which evaluates anew")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({}, "holds no answers and scores .*: run customize again with refresh"),
        (
            {"id": "other", "answers": {"tuned": ""}, "scores": {"tuned": {"exact_match": 0}}},
            "none of the first 11 .*: run",
        ),
        (None, "does not exist: run customize again, which evaluates anew$"),
    ],
    ids=["of another shape", "of other rows", "gone"],
)
def test_answers_that_are_not_there_are_given_anew(
    build: Build,
    config: dict[str, Any],
    merged: Artifact,
    data: Artifact,
    evaluated: Any,
    make_artifact: Any,
    line: dict[str, Any] | None,
    says: str,
) -> None:
    before = evaluated(merged, data)
    manifest = Store.of(before.uri)[0].manifest(Store.of(before.uri)[1])
    if line is None:
        shutil.rmtree(before.uri.removeprefix("file://"))
    else:
        files = dict.fromkeys(("answers.jsonl", "scores.jsonl"), json.dumps(line) + "\n")
        before = make_artifact("odd", files, config=manifest.config, inputs=manifest.inputs)
    with pytest.raises(DataError, match=says):
        build(config, evaluation=before)
    build(config, evaluation=evaluated(merged, data))


@pytest.mark.remedy("run customize again with refresh: [merge]")
def test_a_merged_model_without_its_template_is_merged_anew(
    build: Build, config: dict[str, Any], merged: Artifact, make_artifact: Any
) -> None:
    kept = {path for path in (_folder_of(merged) / "model").iterdir() if path.name != "chat_template.jinja"}
    partial = make_artifact("partial", {f"model/{path.name}": path.read_bytes() for path in kept})
    with pytest.raises(DataError, match=r"run customize again with refresh: \[merge\]$"):
        build(config, merged=partial)
    build(config)


@pytest.mark.remedy("CTranslate2 cannot open the engine that it just wrote (…): clear this task")
def test_an_engine_that_could_not_be_opened_is_built_by_the_cleared_task(
    build: Build, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as broken,
        pytest.raises(AnemoneError, match="cannot open the engine .*: clear this task"),
    ):
        # The process that opens it does not start.
        broken.setenv("PYTHONHOME", "/nowhere")
        build(config)
    build(config)


def test_a_tokenizer_that_serving_would_read_otherwise_is_refused(
    build: Build, config: dict[str, Any], merged: Artifact, make_artifact: Any
) -> None:
    """transformers takes more tokens from tokenizer_config.json, which tokenizers does not know."""
    settings = json.loads((_folder_of(merged) / "model" / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] = ["<|tool|>"]
    odd = make_artifact("odd", {"model/tokenizer_config.json": json.dumps(settings)}, folder=_folder_of(merged))
    with pytest.raises(DivergenceError, match=r"would not tokenise as training did: the text '<\|tool\|>' gives"):
        build(config, merged=odd)


def test_pickles_are_refused(build: Build, config: dict[str, Any], merged: Artifact, make_artifact: Any) -> None:
    pickled = make_artifact("pickled", {"model/pytorch_model.bin": b"\x80\x04."}, folder=_folder_of(merged))
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle"):
        build(config, merged=pickled)


def test_a_model_that_ctranslate2_does_not_know_is_refused(
    build: Build, config: dict[str, Any], merged: Artifact, make_artifact: Any
) -> None:
    settings = json.loads((_folder_of(merged) / "model" / "config.json").read_text()) | {"model_type": "deepseek_v3"}
    foreign = make_artifact("foreign", {"model/config.json": json.dumps(settings)}, folder=_folder_of(merged))
    with pytest.raises(ConfigurationError, match=r"does not convert this model .*choose another base model"):
        build(config, merged=foreign)


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def _folder_of(artifact: Artifact) -> Path:
    (attempt,) = (Path(artifact.uri.removeprefix("file://")) / "attempts").iterdir()
    return attempt / "files"
