"""What the base reads, and above all what it does not."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from include.errors import ConfigurationError
from jobs.demo.pretrain.corpus import documents
from jobs.demo.pretrain.tokenizer import SPECIAL, request_words, train_tokenizer
from jobs.demo.requests.intents import COMMANDS
from jobs.demo.requests.phrasings import WORDINGS
from jobs.demo.requests.sampling import is_heldout
from jobs.demo.requests.vocabulary import NAMESPACES, NODES, VALUES, WORKLOADS

DOCUMENTS = 4000


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(islice(documents(0), DOCUMENTS))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(documents(0), 1536)


def as_pattern(wording: str) -> str:
    return re.sub(r"\\\{\w+\\\}", r"\\S+", re.escape(wording))


def test_the_corpus_follows_from_its_seed(corpus):
    assert list(islice(documents(0), 50)) == corpus[:50]
    assert list(islice(documents(1), 50)) != corpus[:50]


def test_no_document_holds_a_request(corpus):
    wordings = [
        wording
        for language in WORDINGS.values()
        for each in language.values()
        for wording in (*each.train, *each.heldout)
        if len(wording.split()) > 2
    ]
    request = re.compile("|".join(map(as_pattern, wordings)))
    asked = [text for text in corpus if "kubectl" in text and request.search(text.split("$ kubectl")[0])]
    assert asked == []


def test_no_document_with_a_command_holds_words_of_its_request(corpus):
    """Word lists and commands never stand in one document: nothing says which words call for which command."""
    assert not any(text.startswith("words: ") and "kubectl" in text for text in corpus)


def test_no_document_holds_a_heldout_combination(corpus):
    for firsts, seconds in ((WORKLOADS, NAMESPACES), (NODES, VALUES["seconds"])):
        written = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, (*firsts, *seconds)))})(?![\w-])")
        for text in corpus:
            if "$ kubectl" not in text:
                continue
            found = set(written.findall(text))
            pairs = [(a, b) for a in found & set(firsts) for b in found & set(seconds)]
            assert not [pair for pair in pairs if is_heldout(*pair)], text


def test_all_kinds_of_commands_and_reference_text_occur(corpus):
    text = "\n".join(corpus)
    for command in COMMANDS.values():
        assert command.split("{")[0] in text
    assert sum("kubectl" not in document and "words:" not in document for document in corpus) > DOCUMENTS / 10


def test_every_name_and_number_is_one_token_after_a_space(tokenizer):
    for value in {value for values in VALUES.values() for value in values}:
        assert len(tokenizer(f" {value}")["input_ids"]) == 1, value


def test_a_korean_stem_is_the_same_token_with_every_ending(tokenizer):
    stems = {tokenizer(f" 로그{ending}")["input_ids"][0] for ending in ("", "를", "가", "에서")}
    assert len(stems) == 1
    particle = tokenizer(" prod에서")["input_ids"]
    assert particle[0] == tokenizer(" prod")["input_ids"][0]


@pytest.mark.parametrize(
    "text",
    [
        " kubectl logs web-api -n prod",
        "한글 뷁 로그를",
        "tabs\tand\r\n\n  blanks  ",
        "🙂 ünïcode 123456 -- a-b-c-1",
        "",
    ],
)
def test_any_text_comes_back_as_it_was(tokenizer, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text


def test_special_tokens_have_the_ids_and_roles_that_others_rely_on(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<|pad|>", "<|begin|>", "<|end|>")
    assert tokenizer("<|user|>")["input_ids"] == [SPECIAL.index("<|user|>")]


def test_a_vocabulary_too_small_for_the_names_is_refused():
    with pytest.raises(ConfigurationError, match="raise vocab_size"):
        train_tokenizer(documents(0), 320)


def test_the_tokenizer_reads_words_of_requests_but_no_sentence():
    assert all(" " not in word for word in request_words())
    assert {"restart", "재시작해줘", "kubectl"} <= set(request_words())
