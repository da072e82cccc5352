"""The page and the card: whole without network, and safe whatever stands in the data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from include.specs.report import Spec
from jobs.report.build import build
from jobs.report.card import render_card
from jobs.report.page import render_page
from tests.jobs.report.world import DATA, HOSTILE, MODEL, World

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "circle"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        # An end tag that HTML lets one leave out is closed by its parent's.
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(promoted: Spec) -> Reader:
    return Reader(render_page(build(promoted)))


def test_the_verdict_is_the_first_line(page: Reader) -> None:
    assert "".join(page.text).index("Live: toy version 2") >= 0
    assert page.tags.index("h1") < page.tags.index("h2")


def test_text_from_the_data_is_only_ever_text(page: Reader) -> None:
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in "".join(page.text)


def test_nothing_is_loaded_from_anywhere(page: Reader) -> None:
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert addresses and all(value.startswith(("#", "data:,")) for value in addresses if value)
    assert not re.search(r"@import|url\(", "".join(page.text))


def test_every_section_of_a_release_is_there(page: Reader) -> None:
    text = " ".join("".join(page.text).split())
    for words in ("exact duplicate · 2", "10 → 7", "0.800", "lora dim", "merged model → engine", "int8", "9,000",
                  "evidence that the canary is worse", "torch", "abababababab", "came so far"):  # fmt: skip
        assert (words in text) == (words != "came so far"), words
    assert page.tags.count("svg") > 10


def test_a_stage_has_its_cost_and_the_run_the_sum_of_its_own(page: Reader, world: World) -> None:
    text = " ".join("".join(page.text).split())
    # Made by an earlier run, so that the release's own sum knows of none.
    assert text.count("256.0 MiB$12.35") == 1 and "256.0 MiB–" in text
    assert "of CPU, $" not in text
    world.data()
    world.model()
    own = Reader(render_page(build(world.spec("customize", MODEL))))
    assert "of CPU, $12.35" in " ".join("".join(own.text).split())


def test_without_a_price_there_is_no_word_of_one(world: World) -> None:
    world.data()
    page = Reader(render_page(build(world.spec("customize", DATA))))
    text = " ".join("".join(page.text).split())
    assert "$" not in text and "price" not in text


def test_a_stopped_run_says_what_it_never_reached(world: World) -> None:
    world.data(leaked=2)
    page = Reader(render_page(build(world.spec("customize", DATA, failed="data_quality_gate"))))
    text = " ".join("".join(page.text).split())
    assert "The training: the run did not come so far." in text
    assert "The evaluation: the run did not come so far." in text
    assert "The canary belongs to the release" in text


def test_a_run_that_made_nothing_has_a_page(world: World) -> None:
    page = Reader(render_page(build(world.spec("release", (), failed="plan", message=HOSTILE))))
    assert HOSTILE in "".join(page.text)
    assert "The canary: the run did not come so far." in " ".join("".join(page.text).split())


def test_the_card_is_one_for_the_hub(promoted: Spec) -> None:
    from huggingface_hub import ModelCard

    record = build(promoted)
    text = render_card(record)
    assert text is not None
    card = ModelCard(text)
    assert card.data.base_model == "org/base" and "lora" in card.data.tags
    exact = next(result for result in card.data.eval_results if result.metric_type == "exact_match")
    assert exact.metric_value == pytest.approx(0.8)
    assert "20.0% are not answered word for word" in card.text
    assert all(made.digest in card.text for made in record.chain)
    assert "<script" not in card.text and "<img" not in card.text


def test_rows_that_were_too_long_are_counted(world: World) -> None:
    world.data()
    world.model(right=8, too_long=2)
    record = build(world.spec("customize", MODEL))
    assert record.evaluation is not None
    assert {score.model: score.rows_too_long for score in record.evaluation.scores}["tuned"] == 2
    (gate,) = (gate for gate in record.gates if gate.name == "evaluation")
    assert any("2 of 10 held-out rows (20.00%) are too long for tuned" in reason for reason in gate.reasons)
    assert "They count as wrong." in render_page(record)
    card = render_card(record)
    assert card is not None and "2 were cut off; 2 of the rows leave no room for the right answer." in card


def test_no_card_without_a_model(world: World) -> None:
    world.data()
    assert render_card(build(world.spec("customize", DATA, failed="finetune"))) is None


def test_page_and_card_are_made_of_the_record_alone(promoted: Spec) -> None:
    record = build(promoted)
    again = type(record).model_validate_json(record.model_dump_json())
    assert render_page(again) == render_page(record)
    assert render_card(again) == render_card(record)
    assert json.loads(record.model_dump_json())["verdict"]["line"] == "Live: toy version 2"


def test_a_dag_that_nobody_here_knows_has_the_sections_that_it_needs(world: World) -> None:
    page = Reader(render_page(build(world.stranger())))
    sections = [value for tag, name, value in page.attributes if tag == "section" and name == "id"]
    assert sections == ["gates", "lineage", "cost", "versions"]
    text = " ".join(" ".join(page.text).split())
    assert "teach ·" in text and "lessons" in text and "recipe" not in text
    assert "did not come so far" not in text
