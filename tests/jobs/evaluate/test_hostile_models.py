"""Models that were made by hand, and would run code where somebody loads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.hostile import Spoil, configured, own_code, pickled, rubbish


def template_with_tricks(folder: Path, marker: Path) -> None:
    trick = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(trick + template)


def made(when: str, then: str, *values: Any) -> Any:
    given = "a model artifact that was made by hand, with digests that are right"
    return pytest.param(*values, id=when, marks=scenario(given=given, when=when, then=then))


NEVER_RUNS = "the job ends with 65, and it never runs"
REFUSED = "the job ends with 65 and one sentence"


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        made("its model.safetensors is a pickle in truth", NEVER_RUNS, pickled("model.safetensors"), 65,
             "cannot be loaded"),
        made("it brings Python code of its own", NEVER_RUNS, own_code(unknown=True), 65,
             "has auto_map: this model runs Python code that comes with it"),
        made("its chat template reaches for os.system",
             "the job ends with 64: templates are rendered in a sandbox", template_with_tricks, 64,
             "it reaches for what a template must not"),
        made("its tokenizer.json is rubbish", REFUSED, rubbish("tokenizer.json"), 65,
             "holds no tokenizer that can be loaded"),
        made("its config.json names no attention head", REFUSED, configured(num_attention_heads=0), 65,
             "cannot be loaded"),
    ],
)  # fmt: skip
def test_no_code_of_a_model_runs(
    refused: Callable[..., str],
    config: dict[str, Any],
    random_model: Artifact,
    data: Artifact,
    make_artifact: Callable[..., Artifact],
    folders: dict[str, Path],
    tmp_path: Path,
    spoil: Spoil,
    code: int,
    says: str,
) -> None:
    folder = shutil.copytree(folders["trained"], tmp_path / "spoilt")
    marker = tmp_path / "it-ran"
    spoil(folder / "model", marker)
    tuned = make_artifact("merge-1", folder=folder)
    assert says in refused("evaluate", config, {"base": random_model, "tuned": tuned, "data": data}, code)
    assert not marker.exists()
