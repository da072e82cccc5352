from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from jobs.report.charts import NARROW, Bound, Chart, Series, interval


def drawings(chart: Chart) -> list[ElementTree.Element]:
    return ElementTree.fromstring(str(chart.draw())).findall(".//svg")


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    return [text.text or "" for text in svg.iter("text") if kind in text.get("class", "").split()]


def line(points: list[tuple[float, float]], **options: object) -> Chart:
    return Chart(title="t", x_label="x", series=(Series("a", points),), **options)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 0.73), ["0", "0.2", "0.4", "0.6", "0.8"]),
        ((5.0, 5.0), ["4", "4.5", "5", "5.5", "6"]),
        ((0.0, 0.0), ["0", "0.5", "1"]),
        ((-3.0, 12.0), ["−5", "0", "5", "10", "15"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(values: tuple[float, float], ticks: list[str]) -> None:
    wide, _ = drawings(line([(0, values[0]), (1, values[1])]))
    assert [text for text in texts(wide, "tick") if "middle" not in text][: len(ticks)] == ticks


def test_a_logarithmic_axis_has_powers_of_ten_and_leaves_out_what_it_cannot_show() -> None:
    wide, _ = drawings(line([(0, 0.0), (1, 2.0), (2, 0.002), (3, math.nan), (4, math.inf)], logarithmic=True))
    assert {"1", "0.1", "0.01"} <= set(texts(wide, "tick"))
    (path,) = (path for path in wide.iter("path") if "line" in path.get("class", ""))
    assert path.get("d", "").count("L") == 1


def test_every_point_lies_within_the_drawing() -> None:
    chart = Chart(
        title="t",
        x_label="x",
        series=(Series("a", [(x, math.sin(x)) for x in range(50)]), Series("b", [(0, 3.0), (50, 9.0)], steps=True)),
        bounds=(Bound("limit", 20.0),),
    )
    for svg in drawings(chart):
        width, height = (float(value) for value in svg.get("viewBox", "").split()[2:])
        for path in svg.iter("path"):
            for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d", "")):
                assert 0 <= float(x) <= width and 0 <= float(y) <= height


def test_labels_stand_apart_and_fit_a_phone() -> None:
    series = tuple(Series(f"line {number}", [(0, 1.0), (1, 1.0 + number / 1000)]) for number in range(3))
    for svg in drawings(Chart(title="t", x_label="x", series=series, bounds=(Bound("limit", 1.0),))):
        heights = sorted(float(text.get("y", "0")) for text in svg.iter("text") if "label" in text.get("class", ""))
        assert len(heights) == 4 and min(b - a for a, b in pairwise(heights)) >= 15
    assert drawings(line([(0, 1)]))[1].get("viewBox", "").split()[2] == str(NARROW)


def test_names_are_text() -> None:
    chart = Chart(title="<b>", x_label="&", series=(Series('"<script>', [(0, 1.0), (1, 2.0)]),))
    assert texts(drawings(chart)[0], "label") == ['"<script>']


def test_nothing_to_draw_is_said() -> None:
    assert "nothing to draw" in str(line([(0, math.nan)]).draw())


def test_an_interval_stays_on_its_axis() -> None:
    svg = ElementTree.fromstring(str(interval(0.5, -3.0, 7.0)))
    (bar,) = (path for path in svg.iter("path") if "line" in path.get("class", ""))
    assert bar.get("d") == "M4.0 8H156.0"
