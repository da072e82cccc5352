"""Announcements on both backends: durable, asked first, and cheap however many there were."""

from __future__ import annotations

from typing import ClassVar

import pytest

from include.announcements import Announcement, Announcements
from include.artifacts import files
from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.errors import ArtifactError, TryAgainError


class Letter(Announcement):
    asset: ClassVar[str] = "letters"

    text: str
    remark: str = ""

    @property
    def identity(self) -> list[str | None]:
        return [self.text]

    @property
    def run(self) -> Run:
        return Run(dag_id="answer", run_id=f"letter__{self.key}")


@pytest.fixture(params=["files", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return Store(f"s3://{request.getfixturevalue('s3_bucket')}/store", existing=True)
    (tmp_path / "store").mkdir()
    return Store(f"file://{tmp_path}/store", existing=True)


@pytest.fixture
def letters(store):
    return Announcements(store, Letter)


def test_what_is_announced_is_pending_once_until_its_run_was_started(letters):
    a, b = Letter(text="a"), Letter(text="b", remark="../{{ 1 }}")
    for letter in (a, b, a, Letter(text="a", remark="again")):
        letters.add(letter)
    assert sorted(letters.pending()) == sorted([a.key, b.key])
    assert letters.read(a.key) == a and letters.read(b.key) == b
    assert not letters.was_started(a.run)
    letters.note_start(a.run, a)
    letters.settle(a.key)
    assert letters.pending() == [b.key]
    assert letters.read(a.key) is None
    assert letters.was_started(a.run) and not letters.was_started(b.run)


def test_every_step_can_be_repeated(letters):
    letter = Letter(text="a")
    for _ in range(2):
        letters.add(letter)
        letters.note_start(letter.run, letter)
    for _ in range(2):
        letters.settle(letter.key)
    assert letters.refuse(letter.key) is None
    assert letters.was_started(letter.run)


def test_what_cannot_be_read_says_where_it_lies_and_can_be_set_aside(letters, store):
    path = "announced/letters/pending/0123.json"
    store.create(path, b'{"text": 1')
    with pytest.raises(ArtifactError, match=r"announced/letters/pending/0123\.json is damaged"):
        letters.read("0123")
    aside = letters.refuse("0123")
    assert aside == f"{store.root}/announced/letters/refused/0123.json"
    assert store.read_file("announced/letters/refused/0123.json") == b'{"text": 1'
    assert letters.pending() == []


def test_a_correction_that_is_still_bad_lies_beside_what_was_refused_before(letters, store):
    for number, data in enumerate((b"{", b"[", b"[", b"{", b"("), 1):
        # A person copies, and does not move.
        store.create("announced/letters/pending/0123.json", data)
        where = letters.refuse("0123")
        assert where is not None and store.read_file(where.removeprefix(f"{store.root}/")) == data, number
        assert letters.pending() == []
    found = {entry.path.rpartition("/")[2] for entry in store.listing("announced/letters/refused")}
    assert found == {"0123.json", "0123-2.json", "0123-3.json"}


def test_the_oldest_comes_first(tmp_path):
    (tmp_path / "store").mkdir()
    letters = Announcements(Store(f"file://{tmp_path}/store", existing=True), Letter)
    keys = []
    for text in "dbac":
        letters.add(Letter(text=text))
        keys.append(Letter(text=text).key)
    assert letters.pending() == keys


def test_nothing_of_what_was_started_before_is_looked_at(letters, monkeypatch):
    for number in range(20):
        letter = Letter(text=str(number))
        letters.note_start(letter.run, letter)
    letters.add(Letter(text="new"))
    asked = []
    for method in ("listing", "read_file"):
        real = getattr(Store, method)
        monkeypatch.setattr(Store, method, lambda self, path="", real=real: asked.append(path) or real(self, path))
    [key] = letters.pending()
    letters.read(key)
    letters.was_started(Letter(text="new").run)
    assert len(asked) == 3
    assert asked[0] == "announced/letters/pending"


def test_a_store_that_is_away_is_no_store_without_announcements(tmp_path):
    letters = Announcements(Store(f"file://{tmp_path}/away", existing=True), Letter)
    for ask in (
        letters.pending,
        lambda: letters.add(Letter(text="a")),
        lambda: letters.was_started(Letter(text="a").run),
    ):
        with pytest.raises(TryAgainError):
            ask()
    assert not (tmp_path / "away").exists()


def test_one_is_announced_while_the_folder_is_emptied(tmp_path, monkeypatch):
    """The last one that is settled takes the folder along, which the next one was about to be written into."""
    (tmp_path / "store").mkdir()
    letters = Announcements(Store(f"file://{tmp_path}/store", existing=True), Letter)
    a, b = Letter(text="a"), Letter(text="b")
    letters.add(a)
    real = files.tempfile.mkstemp

    def late(**place):
        if letters.pending():
            letters.settle(a.key)
        return real(**place)

    monkeypatch.setattr(files.tempfile, "mkstemp", late)
    letters.add(b)
    assert letters.pending() == [b.key]
