"""CTranslate2 as the engine: https://opennmt.net/CTranslate2."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter

from include.errors import AnemoneError, ConfigurationError, DataError
from jobs.common.causal_lm import Conversation, import_transformers, load_model
from jobs.common.chat import load_tokenizer
from jobs.common.engine_runtime.hardware import cpu_flags
from jobs.common.engine_runtime.text import TEMPLATE, Text
from jobs.common.generation import Generated

_ISA = re.compile(r"Selected ISA: (\S+)")


class CTranslate2Builder:
    """Converts Llama, Qwen, Mistral, Gemma, Phi and whatever else CTranslate2 has a loader for.

    Args:
        compute_type: "int8" or "float32".
    """

    def __init__(self, compute_type: str) -> None:
        self._compute_type = compute_type

    def build(self, model: Path, engine: Path) -> dict[str, Any]:
        import_transformers()
        quantization = None if self._compute_type == "float32" else self._compute_type
        try:
            _Converter(str(model)).convert(str(engine), quantization=quantization)
        except OSError as error:
            raise DataError(
                f"{model} cannot be read ({' '.join(str(error).split())[:300]}): run customize again with refresh: "
                "[merge]"
            ) from error
        except (ValueError, NotImplementedError) as error:
            raise ConfigurationError(
                f"CTranslate2 {ctranslate2.__version__} does not convert this model "
                f"({' '.join(str(error).split())[:300]}): choose another base model"
            ) from error
        return {
            "builder": "ctranslate2",
            "version": ctranslate2.__version__,
            "compute_type": self._compute_type,
            "arch": platform.machine(),
            "isa": _dispatched_isa(engine),
            "cpu_flags": cpu_flags(),
        }

    def open(self, engine: Path, text: Text) -> CTranslate2Engine:
        return CTranslate2Engine(
            ctranslate2.Generator(str(engine), compute_type=self._compute_type, intra_threads=1), text
        )


class CTranslate2Engine:
    """One generator on one thread."""

    def __init__(self, generator: ctranslate2.Generator, text: Text) -> None:
        self._generator = generator
        self._text = text

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Generated]:
        answers: dict[int, Generated] = {}
        # Shortest first: what is longer than a batch's shortest prompt is read token by token.
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            results = self._generator.generate_batch(
                [self._text.tokens(prompts[index]) for index in chosen],
                max_length=max_new_tokens,
                end_token=list(end_ids),
                return_end_token=True,
                include_prompt_in_result=False,
            )
            for index, result in zip(chosen, results, strict=True):
                (ids,) = result.sequences_ids
                finished = bool(ids) and ids[-1] in end_ids
                answers[index] = Generated(ids[:-1] if finished else ids, finished)
            on_batch(start + len(chosen))
        return [answers[index] for index in range(len(prompts))]

    def answer_log_probabilities(self, conversations: Sequence[Conversation]) -> Iterator[np.ndarray]:
        for row in conversations:
            # One at a time: CTranslate2 returns the logits of every position, which a batch would pad, too.
            logits = np.array(self._generator.forward_batch([row.ids]), dtype=np.float64)[0]
            before = [position - 1 for position, marked in enumerate(row.mask) if marked]
            yield _log_softmax(logits[before])


class _Converter(TransformersConverter):
    """Reads the model and its tokenizer as every other job does: from safetensors, whole, and never from a hub."""

    def _load(self) -> Any:
        spec = super()._load()
        # Where a tokenizer has no such token some loaders write null, which the engine cannot read.
        for name in ("bos_token", "eos_token", "unk_token"):
            setattr(spec.config, name, getattr(spec.config, name) or "")
        return spec

    def load_model(self, model_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        return load_model(Path(model_name_or_path), "float32").cpu()

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        folder = Path(model_name_or_path)
        return load_tokenizer(folder, (folder / TEMPLATE).read_text(encoding="utf-8"))


def _dispatched_isa(engine: Path) -> str:
    """Return the instruction set that CTranslate2 chooses, which it only writes to its log, once a process."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ctranslate2; ctranslate2.Generator(sys.argv[1])", str(engine)],
        env={**os.environ, "CT2_VERBOSE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"signal {-done.returncode}"]
        raise AnemoneError(f"CTranslate2 cannot open the engine that it just wrote ({last[0]}): clear this task")
    found = _ISA.search(done.stderr + done.stdout)
    return found[1] if found else "unknown"


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
