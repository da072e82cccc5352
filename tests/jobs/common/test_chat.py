"""The shared chat rendering, with the demo's template and a tokenizer of its special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from include.errors import ConfigurationError, DataError
from include.home import PROJECT
from include.recipes import resolve
from jobs.common.chat import encode, encode_prompt, load_tokenizer
from tests.jobs.models import TEMPLATE, trained_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    trained_tokenizer(["kubectl get pods -n prod"], 280).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder, TEMPLATE)


def messages(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in texts]


@pytest.mark.remedy("chat_template: it is empty; name a file of include/templates/ as chat_template")
@pytest.mark.parametrize("name", sorted(path.name for path in (PROJECT / "include" / "templates").iterdir()))
def test_an_empty_template_has_any_of_ours_in_its_place(folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name a file of include/templates/ as chat_template$"):
        load_tokenizer(folder, " \n")
    recipe = resolve("demo/0.8M_lora_cpu", {"chat_template": name})
    load_tokenizer(folder, recipe.section("finetune").config["chat_template"])


def test_a_conversation_renders_as_the_template_says(tokenizer: Any) -> None:
    ids, mask = encode(tokenizer, messages(("system", "Be brief."), ("user", "list pods"), ("assistant", "kubectl")))
    assert tokenizer.decode(ids) == "<|begin|><|system|> Be brief.\n<|user|> list pods\n<|assistant|> kubectl<|end|>"
    assert tokenizer.decode([token for token, trained in zip(ids, mask, strict=True) if trained]) == " kubectl<|end|>"
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id


def test_an_empty_system_message_is_skipped(tokenizer: Any) -> None:
    with_empty = messages(("system", ""), ("user", "a"), ("assistant", "b"))
    assert encode(tokenizer, with_empty) == encode(tokenizer, with_empty[1:])


def test_the_prompt_is_exactly_what_comes_before_the_answer(tokenizer: Any) -> None:
    talk = messages(("user", "파드 목록"), ("assistant", "kubectl get pods"))
    ids, mask = encode(tokenizer, talk)
    prompt = encode_prompt(tokenizer, talk)
    assert prompt == encode_prompt(tokenizer, talk[:1])
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert tokenizer.decode(prompt) == "<|begin|><|user|> 파드 목록\n<|assistant|>"


def test_every_answer_of_a_longer_conversation_is_trained_on(tokenizer: Any) -> None:
    talk = messages(("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"))
    ids, mask = encode(tokenizer, talk)
    trained = tokenizer.decode([token for token, kept in zip(ids, mask, strict=True) if kept])
    assert trained == " first<|end|> second<|end|>"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json and no tokenizer_config\.json"):
        load_tokenizer(tmp_path, TEMPLATE)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", ConfigurationError, "reaches for what a template must not .*__class__"),
        ("{{ raise_exception('no system') }}", DataError, "starts with '파드' .*no system"),
        ("{{ messages[0].missing + 1 }}", DataError, "correct the template, or take the row out"),
    ],
)
def test_a_template_that_cannot_render_a_conversation_says_so(folder: Path, text: str, error: type, words: str) -> None:
    tokenizer = load_tokenizer(folder, "{% generation %}{{ messages[-1].content }}{% endgeneration %}" + text)
    talk = messages(("user", "파드"), ("assistant", "kubectl"))
    for render in (encode, encode_prompt):
        with pytest.raises(error, match=words):
            render(tokenizer, talk)
