"""Models to measure on: the demo's own, and Llamas with random weights of a given size."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from include.artifacts.store import Store
from include.platforms import current_platform
from jobs.common.chat import encode_prompt, load_tokenizer
from jobs.common.engine_runtime.text import TEMPLATE
from jobs.common.heldout import read_rows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
_SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>")


@dataclass(frozen=True)
class Shape:
    """Of a Llama with tied embeddings."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int


SHAPES = {
    "0.8M": Shape(vocabulary=1536, hidden=128, intermediate=320, layers=3, heads=4),
    "5M": Shape(vocabulary=4096, hidden=256, intermediate=1024, layers=4, heads=4),
    "110M": Shape(vocabulary=32000, hidden=768, intermediate=2048, layers=12, heads=12),
}


@dataclass(frozen=True)
class Subject:
    """A model, and what it is asked.

    Attributes:
        folder: Hugging Face folder.
        prompts: token ids.
        trained: its answers end by themselves; a random model's do not.
    """

    name: str
    folder: Path
    prompts: list[list[int]]
    trained: bool


def demo_model(folder: Path, prompts: int) -> Subject:
    """The newest merged model in the store, asked real held-out questions; a random one where there is none."""
    store = Store(current_platform().store)
    found = [
        manifest
        for path in Path(store.root.removeprefix("file://")).glob("merge-*/manifest.json")
        if (manifest := store.manifest(path.parent.name)) is not None
    ]
    if not found:
        return random_model("0.8M", folder, prompts)
    newest = max(found, key=lambda manifest: manifest.provenance.finished)
    root = Path(store.root.removeprefix("file://"))
    model = root / newest.name / "attempts" / newest.attempt / "files" / "model"
    data_store, data = Store.of(newest.inputs["data"].uri)
    tokenizer = load_tokenizer(model, (model / TEMPLATE).read_text(encoding="utf-8"))
    with data_store.open_files(data) as curated:
        rows = read_rows(curated / "heldout.jsonl", prompts)
    return Subject("demo", model, [encode_prompt(tokenizer, row["messages"]) for row in rows], trained=True)


def random_model(size: str, folder: Path, prompts: int) -> Subject:
    """Write a Llama with random weights, and draw prompts of 12 to 32 tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    shape = SHAPES[size]
    write_llama(shape, folder, pad=0, begin=1, end=2, mute=range(len(_SPECIAL)))
    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), shape.vocabulary))]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<|pad|>")),
        pad_token=words[0],
        bos_token=words[1],
        eos_token=words[2],
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    draw = random.Random(0)
    asked = [_draw(draw, shape.vocabulary) for _ in range(prompts)]
    return Subject(size, folder, asked, trained=False)


def write_llama(
    shape: Shape, folder: Path, *, pad: int | None, begin: int | None, end: int, mute: Iterable[int]
) -> None:
    """Write a Llama with random weights, whose greedy answers hold none of the `mute` tokens."""
    import torch

    model = llama(shape, pad=pad, begin=begin, end=end)
    with torch.no_grad():
        # The embeddings are the output's weights, too: their logits are 0, and some other's is above.
        model.get_input_embeddings().weight[list(mute)] = 0
    model.save_pretrained(folder)


def llama(
    shape: Shape, *, pad: int | None = None, begin: int | None = None, end: int | None = None
) -> LlamaForCausalLM:
    """Return a Llama with random weights, the same ones each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=begin,
            eos_token_id=end,
        )
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after six special ones; as the demo's chat template wants them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*CHAT_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(characters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CHAT_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def _draw(draw: random.Random, vocabulary: int) -> list[int]:
    return [1, *(draw.randrange(len(_SPECIAL), vocabulary) for _ in range(draw.randint(11, 31)))]


def parameters(folder: Path) -> int:
    """How many numbers the model's safetensors files hold."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(_size(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
