"""CTranslate2 against transformers' `generate`: answer tokens a CPU-second, one thread, batches of 1 and 16.

    .anemone/venvs/jobs/bin/python tests/benchmarks/engine.py       # about two minutes

transformers computes in float32 with its key-value cache. Both sides get the same batches in the same order, and each
counts its own tokens, an end token among them. The demo's model answers held-out questions until it ends its answer;
random models, which end by accident or never, write a fixed number of tokens. The sides take turns; a ratio is of one
turn, and the median and the range of all turns are printed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    TORCHDYNAMO_DISABLE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)

import ctranslate2
import frame
import torch
from models import Subject, demo_model, parameters, random_model
from transformers import GenerationConfig

from jobs.common.causal_lm import left_padded, load_model
from jobs.common.chat import load_tokenizer
from jobs.common.engine_runtime.text import TEMPLATE
from jobs.engine.ctranslate2 import CTranslate2Builder

BATCHES = (1, 16)
COMPUTE_TYPES = ("int8", "float32")
END = 2
NEW_TOKENS = 48
AIMS = {"demo": 4.0, "0.8M": 4.0, "5M": 3.0, "110M": 3.0}

Answers = list[list[int]]
Generate = Callable[[Sequence[Sequence[int]]], Answers]


def measure(small: bool) -> list[frame.Row]:
    turns = 1 if small else 3
    torch.set_num_threads(1)
    print(f"CTranslate2 {ctranslate2.__version__}, {turns} turns, tokens a CPU-second (median)\n")
    print("| model | batch | transformers | int8 | float32 | int8 ÷ transformers | float32 ÷ | aim | same text |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for make in (_demo, _random("5M", 16), *(() if small else (_random("110M", 16),))):
            subject = make(Path(scratch))
            for batch in BATCHES:
                line, row = _compare(subject, batch, turns, Path(scratch))
                print(line, flush=True)
                rows.append(row)
    print()
    return rows


def _demo(scratch: Path) -> Subject:
    return demo_model(scratch / "demo", 64)


def _random(size: str, prompts: int) -> Callable[[Path], Subject]:
    return lambda scratch: random_model(size, scratch / size, prompts)


def _compare(subject: Subject, batch: int, turns: int, scratch: Path) -> tuple[str, frame.Row]:
    # At batch 1 a random model of this size takes seconds a prompt, and all prompts are alike to it.
    prompts = subject.prompts if subject.trained or batch > 1 else subject.prompts[:2]
    sides: dict[str, Generate] = {"transformers": _transformers(subject)}
    sides.update({kind: _ctranslate2(subject, kind, scratch / subject.name / f"ct2-{kind}") for kind in COMPUTE_TYPES})
    answers = {name: _in_batches(generate, prompts, batch)[0] for name, generate in sides.items()}  # also warms up
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, generate in sides.items():
            speeds[name].append(_in_batches(generate, prompts, batch)[1])
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratios = {
        kind: [fast / slow for fast, slow in zip(speeds[kind], speeds["transformers"], strict=True)]
        for kind in COMPUTE_TYPES
    }
    same = " ".join(
        f"{sum(a == b for a, b in zip(answers[kind], answers['transformers'], strict=True))}/{len(prompts)} {kind}"
        for kind in COMPUTE_TYPES
    )
    row = frame.against(
        f"engine in int8 / transformers: {subject.name}, batch {batch}",
        speeds["int8"],
        speeds["transformers"],
        unit="tokens a CPU s",
        more_is_better=True,
        aim=AIMS[subject.name],
        conditions=f"{len(prompts)} prompts, {turns} turns, one thread; "
        + frame.versions("ctranslate2", "transformers", "torch"),
    )
    line = (
        f"| {subject.name} ({parameters(subject.folder) / 1e6:.2f}M) | {batch} "
        f"| {middle['transformers']:,.0f} | {middle['int8']:,.0f} | {middle['float32']:,.0f} "
        f"| {_spread(ratios['int8'])} | {_spread(ratios['float32'])} | ≥ {AIMS[subject.name]:g} "
        f"| {same if subject.trained else '–'} |"
    )
    return line, row


def _spread(ratios: Sequence[float]) -> str:
    return f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f}–{max(ratios):.1f})"


def _in_batches(generate: Generate, prompts: Sequence[Sequence[int]], batch: int) -> tuple[Answers, float]:
    """Return all answers, and their tokens a CPU-second."""
    start = time.process_time()
    answers = [answer for first in range(0, len(prompts), batch) for answer in generate(prompts[first : first + batch])]
    spent = time.process_time() - start
    return answers, sum(map(len, answers)) / spent


def _transformers(subject: Subject) -> Generate:
    model = load_model(subject.folder, "float32").cpu()
    ends: dict[str, Any] = {"eos_token_id": END} if subject.trained else {"eos_token_id": None}
    model.generation_config = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=NEW_TOKENS, pad_token_id=0, **ends
    )

    def generate(prompts: Sequence[Sequence[int]]) -> Answers:
        ids, attention = left_padded(prompts, 0, model.device)
        with torch.inference_mode():
            written = model.generate(input_ids=ids, attention_mask=attention)
        found = written[:, ids.shape[1] :].tolist()
        return [row[: row.index(END) + 1] if subject.trained and END in row else row for row in found]

    return generate


def _ctranslate2(subject: Subject, compute_type: str, folder: Path) -> Generate:
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        CTranslate2Builder(compute_type).build(subject.folder, folder)
    tokenizer = load_tokenizer(subject.folder, (subject.folder / TEMPLATE).read_text(encoding="utf-8"))
    engine = ctranslate2.Generator(str(folder), compute_type=compute_type, intra_threads=1)
    # Suppresses the end token up to the given length.
    least = 0 if subject.trained else NEW_TOKENS

    def generate(prompts: Sequence[Sequence[int]]) -> Answers:
        results = engine.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts],
            min_length=least,
            max_length=NEW_TOKENS,
            end_token=[END],
            return_end_token=True,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return generate


if __name__ == "__main__":
    frame.main(__doc__, measure)
