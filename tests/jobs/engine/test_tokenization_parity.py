"""The text side that serving copies: transformers' token ids without transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import jobs.common.engine_runtime.text
from include.errors import ConfigurationError, DivergenceError
from include.home import PROJECT
from jobs.common.engine_runtime.text import Text, load
from jobs.engine.tokenization_parity import STRINGS, probe_strings, require_same_tokens

TEMPLATES = PROJECT / "include" / "templates"
ASKED = [{"role": "user", "content": "파드를 보여줘"}]

ODD = """\
{%- set system = 'none' -%}
{% for message in messages %}
    {% if loop.first %}{{ bos_token }}{% endif %}
    {% generation %}{% set system = 'changed' %}{{ message.content | tojson(indent=1) }}{% endgeneration %}

    {% if message.role == 'assistant' %}{% continue %}{% endif %}
    {{ system }} {{ message['role'] ~ "<&>" }}
{% endfor %}
{{ strftime_now("%Y") }} {{ tools is none }} {{ documents }} {{ [{"é": 1}] | tojson }}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
"""What real models' templates do: line endings that trim_blocks decides, loop controls, own filters and functions."""

REFUSING = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}
{%- generation -%}{{ message.content }}{%- endgeneration -%}
{%- endfor -%}
"""


def made(tokenizer: Any, template: str) -> Text:
    tokenizer.chat_template = template
    return Text(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), template, tokenizer.special_tokens_map)


@pytest.fixture
def own(tokenizer: Any) -> Any:
    import copy

    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize(
    "template", [(TEMPLATES / "kubectl.jinja").read_text(), (TEMPLATES / "chatml.jinja").read_text(), ODD, REFUSING]
)
def test_it_gives_what_transformers_gives(own: Any, template: str) -> None:
    compared = require_same_tokens(made(own, template), own, probe_strings(own), [ASKED])
    conversations = 3 * len(probe_strings(own)) + 1
    assert compared == (conversations * 2 + 1) // 3 if template is REFUSING else compared == conversations


def test_korean_goes_there_and_back(own: Any) -> None:
    text = made(own, (TEMPLATES / "kubectl.jinja").read_text())
    for string in STRINGS:
        assert text.decode(text.text_ids(string)) == string
    assert text.decode(text.prompt_ids(ASKED)) == "<|begin|><|user|> 파드를 보여줘\n<|assistant|>"


def test_another_tokenizer_is_found_out_and_the_string_named(own: Any) -> None:
    settings = json.loads(own.backend_tokenizer.to_str())
    settings["normalizer"] = {"type": "NFC"}
    other = Text(Tokenizer.from_str(json.dumps(settings)), own.chat_template, own.special_tokens_map)
    with pytest.raises(DivergenceError, match="the text '\u1112\u1161\u11ab\u1100\u1173\u11af' gives .* from"):
        require_same_tokens(other, own, STRINGS, [])


def test_another_template_is_found_out(own: Any) -> None:
    other = Text(own.backend_tokenizer, "x" + own.chat_template, own.special_tokens_map)
    with pytest.raises(DivergenceError, match=r"the conversation that ends with 'show the pods"):
        require_same_tokens(other, own, STRINGS, [])


def test_a_template_that_only_one_side_refuses_is_found_out(own: Any) -> None:
    refusing, taking = REFUSING, REFUSING.replace("raise_exception(", "(")
    with pytest.raises(DivergenceError, match=r"refuses .* \(no system role\), transformers takes it"):
        text = made(own, refusing)
        own.chat_template = taking
        require_same_tokens(text, own, STRINGS, [])
    with pytest.raises(DivergenceError, match=r"takes .*, transformers refuses it"):
        text = made(own, taking)
        own.chat_template = refusing
        require_same_tokens(text, own, STRINGS, [])


def test_a_template_that_takes_nothing_is_an_error(own: Any) -> None:
    template = "{% generation %}{% endgeneration %}{{ raise_exception('never') }}"
    with pytest.raises(ConfigurationError, match=r"takes no conversation at all .*never"):
        require_same_tokens(made(own, template), own, STRINGS, [])


def test_truncation_left_over_from_training_is_undone(own: Any) -> None:
    backend = own.backend_tokenizer
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=64)
    text = Text(Tokenizer.from_str(backend.to_str()), own.chat_template, {})
    assert len(text.text_ids("twelve bytes")) == 12


def test_templates_are_kept_in_a_sandbox(own: Any) -> None:
    from jinja2 import TemplateError

    text = made(own, "{% generation %}{% endgeneration %}{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TemplateError):
        text.prompt_ids(ASKED)


def test_unknown_token_ids_are_an_error(own: Any) -> None:
    text = made(own, own.chat_template)
    assert text.tokens([1, 2]) == ["<|begin|>", "<|end|>"]
    with pytest.raises(ValueError, match="no token 99999"):
        text.tokens([1, 99999])


def test_it_stands_alone(own: Any, tmp_path: Path) -> None:
    """Serving copies the file beside its model, where this project is not to be found."""
    (tmp_path / "text.py").write_bytes(Path(jobs.common.engine_runtime.text.__file__).read_bytes())
    (tmp_path / "tokenizer.json").write_text(own.backend_tokenizer.to_str())
    (tmp_path / "chat_template.jinja").write_text(own.chat_template)
    (tmp_path / "generation.json").write_text(json.dumps({"special_tokens": own.special_tokens_map}))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import text\n"
        f"print(*text.load({str(tmp_path)!r}).prompt_ids({ASKED!r}))\n"
        "print(sorted({'transformers', 'torch', 'numpy', 'jobs', 'include'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    ids, imported = done.stdout.splitlines()
    assert [int(token) for token in ids.split()] == load(tmp_path).prompt_ids(ASKED)
    assert imported == "[]"
