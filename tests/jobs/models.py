"""Tiny models, tokenizers and rows, for the tests of every job that reads one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from include.home import PROJECT

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")


def conversation(identity: str, prompt: str, answer: str, label: str | None = None) -> dict[str, Any]:
    """Return a row of a curated data set: one request and its answer."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": identity, "messages": messages, **({"label": label} if label else {})}


def jsonl(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def byte_tokenizer(chat_template: str | None = None) -> Any:
    """Return a tokenizer of one token a byte, behind the special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(characters)}, merges=[]))
    _byte_level(words)
    words.add_special_tokens(SPECIAL)
    return _fast(words, chat_template)


def trained_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Return a byte-level BPE of `size` tokens that was trained on `texts`; roles are special tokens of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    _byte_level(words)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    words.train_from_iterator(texts, trainer)
    return _fast(words, None, additional_special_tokens=SPECIAL[3:])


def _byte_level(words: Any) -> None:
    from tokenizers import decoders, pre_tokenizers

    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()


def _fast(words: Any, chat_template: str | None, **more: Any) -> Any:
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>", **more
    )
    if chat_template is not None:
        found.chat_template = chat_template
    return found


def tiny_llama(*, seed: int = 0, **shape: Any) -> Any:
    """Return a random Llama: two layers of width 32, unless `shape` (arguments of LlamaConfig) says otherwise."""
    os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    usual = {
        "vocab_size": 262,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**usual, **shape}))


def learn_by_heart(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Train a model on the answers of `rows` until it makes no mistake."""
    import torch

    from jobs.common.chat import encode

    encoded = [encode(tokenizer, row["messages"]) for row in rows]
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in encoded])
    labels = torch.tensor(
        [
            [token if marked else -100 for token, marked in zip(ids, mask, strict=True)] + [-100] * (width - len(ids))
            for ids, mask in encoded
        ]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(120):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01


def save_model(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write both into `folder/model/`, as the artifacts of jobs hold them; returns `folder`."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder
