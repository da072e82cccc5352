from __future__ import annotations

import pytest

from include import platforms
from include.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "_FOLDER", tmp_path)
    platforms.load_platform.cache_clear()
    yield tmp_path
    platforms.load_platform.cache_clear()


def test_the_laptop_keeps_everything_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path))
    platforms.load_platform.cache_clear()
    laptop = platforms.load_platform("laptop")
    platforms.load_platform.cache_clear()
    assert laptop.store == f"file://{tmp_path}/store"
    assert laptop.arrivals.folder == f"{tmp_path}/inbox"
    assert laptop.environment["HF_HUB_OFFLINE"] == "1"


def test_an_unknown_platform_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="ANEMONE_PLATFORM is 'moon': choose one of laptop"):
        platforms.load_platform("moon")


def test_a_wrong_key_and_a_missing_variable_are_named(folder):
    (folder / "odd.yaml").write_text(
        "name: odd\nrunner: local\nstore: s3://b/x\nspeed: 1\narrivals: {folder: /x, recipe: a/b}\n"
        "serving: {url: 'http://x', controller_url: 'http://y', token_file: /t}"
    )
    with pytest.raises(ConfigurationError, match=r"odd\.yaml: speed: Extra inputs"):
        platforms.load_platform("odd")
    (folder / "needy.yaml").write_text("name: needy\nstore: s3://${NO_SUCH_BUCKET}/x")
    with pytest.raises(ConfigurationError, match=r"needy\.yaml needs the environment variable NO_SUCH_BUCKET"):
        platforms.load_platform("needy")
