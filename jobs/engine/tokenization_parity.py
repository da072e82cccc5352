"""Compare the tokenization of serving (tokenizers and Jinja) with that of training and evaluation (transformers)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from include.errors import AnemoneError, ConfigurationError, DivergenceError
from jobs.common.chat import Message, encode_prompt
from jobs.common.engine_runtime.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRINGS = (
    "show the pods in namespace web",
    "Delete the deployment “checkout-api” — now, please!",
    "  two  blanks, a\ttab, a\nnew line and a blank at the end ",
    "windows\r\nlines\r\n",
    "don't, won't; it's 3.14159 and 1,000,000 or 0x1F in v1.2.3-rc.4+build",
    "web 네임스페이스의 파드를 보여줘",
    "결제 서버 로그 마지막 50줄만, 지금 당장!",
    # Hangul as single letters, as macOS spells file names; and letters that form no syllable.
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "ㅋㅋㅋ ㅠㅠ ㄱㄴㄷ",
    "Kubernetes 클러스터에서 nginx를 3개로 scale 해줘",
    "日本語と中文混在，全形１２３",
    "Ünïcödé naïve café e\u0301 ß ﬁ",
    "👩‍💻🏳️‍🌈 🇰🇷 ✈️",
    "العربية עברית हिन्दी ไทย",
    "zero\u200bwidth\u00a0no-break\ufeffmark\u2028line",
    "\x00\x01\x1f\x7f control \U0010ffff",
    "{{ messages }} {% if x %} {# no template #} ${HOME} %s",
    '<b>&amp;</b> "quotes" \\ back\\slash `tick`',
    "x" * 300,
    "a" + "\u0300" * 20,
    " ",
    "",
)
"""English, Korean, both, and texts that tokenizers differ in. `probe_strings` adds the model's special tokens."""


def probe_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return STRINGS, and each special token of the tokenizer, alone and within a text."""
    special = sorted(tokenizer.get_added_vocab())
    return [*STRINGS, *special, *(f"before{token} after {token}" for token in special)]


def require_same_tokens(
    text: Text, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], conversations: Iterable[Sequence[Message]]
) -> int:
    """Compare token ids and their decoding for every string, bare and in conversations, and for `conversations`.

    Returns:
        How many conversations were compared. Those that the template refuses must be refused on both sides.

    Raises:
        DivergenceError: names the first string that differs, and how.
        ConfigurationError: the template accepts no conversation at all.
    """
    for string in strings:
        _same(f"the text {_short(string)}", list(tokenizer(string)["input_ids"]), text.text_ids(string))
        ids = tokenizer(string, add_special_tokens=False)["input_ids"]
        # Parts, too, such as the beginning of an answer that is streamed.
        for part in (ids, ids[: len(ids) // 2], ids[1:]):
            expected = tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            _same(f"the decoded tokens {part[:8]} of {_short(string)}", expected, text.decode(part))
    compared, refusal = 0, None
    for messages in [*_conversations(strings), *conversations]:
        where = f"the conversation that ends with {_short(messages[-1]['content'])}"
        try:
            expected = encode_prompt(tokenizer, messages)
        except AnemoneError as error:
            refusal = error
            _require_refusal(text, messages, where)
            continue
        try:
            found = text.prompt_ids(messages)
        except TemplateError as error:
            raise DivergenceError(
                f"the served chat template refuses {where} ({error}), transformers takes it"
            ) from None
        _same(where, expected, found)
        compared += 1
    if not compared:
        raise ConfigurationError(f"chat_template: it takes no conversation at all ({refusal}): correct the template")
    return compared


def _conversations(strings: Sequence[str]) -> Iterator[list[Message]]:
    for string in strings:
        asked = {"role": "user", "content": string}
        yield [asked]
        yield [{"role": "system", "content": string}, asked]
        yield [asked, {"role": "assistant", "content": string}, asked]


def _require_refusal(text: Text, messages: Sequence[Message], where: str) -> None:
    try:
        text.prompt_ids(messages)
    except Exception:  # a template can raise anything; both sides refuse
        return
    raise DivergenceError(f"the served chat template takes {where}, transformers refuses it")


def _same(where: str, expected: str | list[int], found: str | list[int]) -> None:
    if expected != found:
        at = next(
            (number for number, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]),
            min(len(expected), len(found)),
        )
        raise DivergenceError(
            f"serving would not tokenise as training did: {where} gives {_short(found[at : at + 6])} from position "
            f"{at} on, transformers {_short(expected[at : at + 6])}; nothing was committed: compare tokenizer.json "
            "with tokenizer_config.json in the merged model"
        )


def _short(value: object) -> str:
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "…"
