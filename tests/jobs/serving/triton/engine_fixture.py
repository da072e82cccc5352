"""A tiny engine made without torch: what the job `engine` commits, with random weights and a tokenizer trained here.

Its answers are nonsense, but real generation: they depend on the whole prompt, differ from seed to seed, are never
empty for a chat prompt, and hold Korean, English, and bytes that are no text.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from include.artifacts.manifest import Provenance
from include.artifacts.store import Store
from include.home import PROJECT
from include.specs.base import Artifact

TEMPLATE = (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")
SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
END = SPECIAL.index("<|end|>")
PROMPTS = (
    "list the pods in staging",
    "서울 클러스터의 파드를 모두 보여줘",
    "restart the deployment web",
    "노드 상태를 확인해 주세요",
    "scale api to 3 replicas",
    "show the logs of pod web-0",
    "delete the job nightly",
    "네임스페이스 목록을 보여줘",
)
_SYLLABLES = "가나다라마바사아자차카타파하고노도로모보소오조초코토포호기니디리미비시이지치키티피히"
_CORPUS = (*PROMPTS, "kubectl get pods -n prod", "kubectl scale deployment web --replicas=3", *_SYLLABLES)


def make_engine(folder: Path, seed: int = 0, *, ends: bool = True, answers: int = 8) -> Path:
    """Write an engine artifact's files into `folder` and return it.

    Args:
        ends: whether answers end by themselves, mostly within 30 tokens; otherwise only at their limit of 4,000.
        answers: rows of `golden.jsonl`, with what the engine itself answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    _write_weights(folder / "engine", vocabulary, seed, ends)
    longest = 128 if ends else 4000
    limits = {"end_ids": [END], "max_tokens": longest + 200, "max_new_tokens": longest}
    (folder / "generation.json").write_text(json.dumps(limits))
    (folder / "build.json").write_text(json.dumps(_build()))
    (folder / "parity.json").write_text("{}")
    _write_golden(folder, (PROMPTS * answers)[:answers], longest)
    return folder


def commit_engine(store: Store, name: str, folder: Path) -> Artifact:
    """Commit the files of `folder` as the artifact `name`."""
    now = datetime.now(UTC)
    with store.attempt(name) as attempt:
        for source in folder.rglob("*"):
            if source.is_file():
                target = attempt.files / source.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        manifest, _ = attempt.commit(
            job="engine",
            code="0",
            provenance=Provenance(
                started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
            ),
        )
    return Artifact(uri=store.uri(name), digest=manifest.content_digest)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sorted(_CORPUS) * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def _write_weights(folder: Path, vocabulary: list[str], seed: int, ends: bool) -> None:
    from ctranslate2.specs import common_spec
    from ctranslate2.specs.transformer_spec import TransformerDecoderModelSpec
    from tokenizers.decoders import ByteLevel

    width, hidden, size = 32, 64, len(vocabulary)
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    spec = TransformerDecoderModelSpec.from_config(
        1, 2, activation=common_spec.Activation.SWISH, ffn_glu=True, rms_norm=True, rotary_dim=0,
        rotary_interleave=False,
    )  # fmt: skip
    decoder, layer = spec.decoder, spec.decoder.layer[0]
    decoder.scale_embeddings = False
    decoder.embeddings.weight = random.standard_normal((size, width)).astype(np.float32)
    for norm in (layer.self_attention.layer_norm, layer.ffn.layer_norm, decoder.layer_norm):
        norm.gamma = np.ones(width, np.float32)
    layer.self_attention.linear[0].weight = matrix(3 * width, width)
    layer.self_attention.linear[1].weight = 2 * matrix(width, width)
    layer.ffn.linear_0.weight = matrix(hidden, width)
    layer.ffn.linear_0_noact.weight = matrix(hidden, width)
    layer.ffn.linear_1.weight = matrix(width, hidden)
    projection = random.standard_normal((size, width)).astype(np.float32)
    bias = np.zeros(size, np.float32)
    for token, text in enumerate(vocabulary):
        whole = ByteLevel().decode([text])
        if token < len(SPECIAL) or not (whole.isprintable() or whole == "\n"):
            bias[token] = -1e4
        elif "\ufffd" in whole:
            bias[token] = -np.sqrt(width)
    if ends:
        bias[END] = np.sqrt(width)
        # After a role's token the end is all but impossible, so that no answer is empty.
        role = decoder.embeddings.weight[SPECIAL.index("<|assistant|>")]
        projection[END] -= 4 * role / np.linalg.norm(role)
    decoder.projection.weight = projection
    decoder.projection.bias = bias
    spec.register_vocabulary(vocabulary)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<|begin|>", "<|end|>", ""
    spec.config.layer_norm_epsilon = 1e-6
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir()
    spec.save(str(folder))


def _build() -> dict[str, Any]:
    import ctranslate2

    from jobs.common.engine_runtime.hardware import cpu_flags

    return {
        "builder": "ctranslate2",
        "version": ctranslate2.__version__,
        "compute_type": "float32",
        "arch": platform.machine(),
        "isa": "AVX2",
        "cpu_flags": cpu_flags(),
    }


def _write_golden(folder: Path, prompts: tuple[str, ...], longest: int) -> None:
    import ctranslate2

    from jobs.common.engine_runtime import text

    codec = text.load(folder)
    generator = ctranslate2.Generator(str(folder / "engine"), intra_threads=1)
    with (folder / "golden.jsonl").open("w", encoding="utf-8") as lines:
        for index, prompt in enumerate(prompts):
            messages = [{"role": "user", "content": prompt}]
            start = codec.tokens(codec.prompt_ids(messages))
            [result] = generator.generate_batch(
                [start], include_prompt_in_result=False, max_length=longest, end_token=[END], sampling_topk=1
            )
            answer = codec.decode(result.sequences_ids[0]).strip()
            row = {"id": f"row-{index}", "messages": messages, "reference": answer, "answer": answer, "exact_match": 1}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
