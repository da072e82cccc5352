"""The demo's tokenizer: byte-level BPE in which every name and number is one token, its leading space included.

A model of this size copies single tokens well and runs of pieces badly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING

from include.errors import ConfigurationError
from jobs.demo.requests.intents import COMMANDS
from jobs.demo.requests.phrasings import CLOSINGS, FRAMES, OPENINGS, WORDINGS
from jobs.demo.requests.vocabulary import VALUES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""In the order of their ids, from 0."""

SPLIT = (
    r" ?\p{Latin}+(?:-[\p{Latin}\p{N}]+)*"
    r"| ?\p{N}{1,4}"
    r"| ?\p{Hangul}{1,2}"
    r"| ?\p{L}+"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
"""Where tokens may end: hyphenated names and numbers stay whole; Hangul is cut every two syllables, so that most stems
are the same tokens whatever ending follows them."""

_DOCUMENTS = 4000
_NAME_WEIGHT = 2000
_WORD_WEIGHT = 400


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on the first 4,000 of `texts`, on all names and numbers, and on the single words of requests.

    Only words are read, in alphabetical order, never a sentence of a request.

    Raises:
        ConfigurationError: the vocabulary is too small to hold every name and number as one token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    values = sorted(set(chain.from_iterable(VALUES.values())))
    lines = chain(
        islice(texts, _DOCUMENTS),
        [f" {value}" * _NAME_WEIGHT for value in values],
        [f" {word}" * _WORD_WEIGHT for word in request_words()],
    )
    tokenizer.train_from_iterator(lines, trainer)
    for value in values:
        if len(tokenizer.encode(f" {value}").ids) != 1:
            raise ConfigurationError(
                f"vocab_size: {vocab_size} tokens leave {value!r} in pieces, and the model would not learn to copy it; "
                "raise vocab_size"
            )
    pad, begin, end, *roles = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=roles,
        clean_up_tokenization_spaces=False,
    )


def request_words() -> list[str]:
    """Return every word of phrasings and commands, sorted, without the slots."""
    sentences = [*COMMANDS.values(), *chain(*FRAMES.values(), *OPENINGS.values(), *CLOSINGS.values())]
    for language in WORDINGS.values():
        for wordings in language.values():
            sentences += wordings.train
    return sorted({word for text in sentences for word in re.sub(r"\{\w+\}", " ", text).split()})
