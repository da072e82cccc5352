from __future__ import annotations

import pytest

from include import recipes
from include.errors import ConfigurationError
from operators import forms

OWN = "demo/0.8M_lora_cpu"
"""The recipe of the laptop's arrivals."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of recipes of its own."""
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    forms._problem.cache_clear()
    (tmp_path / "own").mkdir()
    yield tmp_path
    forms._problem.cache_clear()


def test_the_platforms_own_recipe_and_model_stand_first():
    assert forms.recipe_choices("finetune")[0] == OWN
    choices = forms.model_choices()
    assert choices[0] == "kubectl" and len(choices) == len(set(choices)) and "own-data" in choices


def test_what_is_said_of_a_broken_recipe_is_shown_as_it_is(folder):
    """Markdown and HTML in it would be rendered by the form."""
    (folder / "own" / "a.yaml").write_text("finetune: {}\n'<b>`x`</b>': 1\n")
    said = forms.recipe_param("finetune", description_md="A recipe.").schema["description_md"]
    assert said.startswith("A recipe. **Broken:** `own/a` (`recipe own/a: unknown key '<b>'x'</b>': choose one of ")


def test_a_form_without_any_recipe_says_what_to_do(folder):
    with pytest.raises(ConfigurationError, match="no recipe names the stage 'finetune': add one to include/recipes/"):
        forms.recipe_param("finetune", description_md="A recipe.")


def test_a_rollback_needs_no_recipe(folder):
    param = forms.model_param("finetune", description_md="The model.")
    assert (param.value, param.schema["examples"], param.schema["description_md"]) == (None, [], "The model.")
