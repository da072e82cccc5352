from __future__ import annotations

from pathlib import Path

import pytest

from include.home import PROJECT, home, port
from include.laptop.home import NotOursError, make_home, remove_home


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_without_a_variable_the_home_lies_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANEMONE_HOME")
    assert home() == PROJECT / ".anemone"


def test_a_folder_with_somebody_elses_files_is_neither_taken_nor_removed(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "thesis.tex").write_text("years of work")
    with pytest.raises(NotOursError, match="ANEMONE_HOME"):
        make_home()
    with pytest.raises(NotOursError, match="nothing was removed"):
        remove_home()
    assert (own_home / "thesis.tex").read_text() == "years of work"


def test_removal_takes_the_whole_home_but_follows_no_link(own_home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    make_home()
    make_home()
    (own_home / "store" / "a").mkdir(parents=True)
    (own_home / "venvs").symlink_to(elsewhere)
    assert remove_home() == own_home
    assert not own_home.exists()
    assert (elsewhere / "kept").exists()
    remove_home()


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "80 80"])
def test_a_port_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANEMONE_PORT", text)
    with pytest.raises(ValueError, match="ANEMONE_PORT"):
        port()


def test_the_port_defaults_to_airflows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANEMONE_PORT", raising=False)
    assert port() == 8080
