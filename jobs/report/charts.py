"""Charts as inline SVG, without a library and without a script: lines over two axes, and intervals on one.

Colours are classes (`s0`, `s1`, …) that the page's style sheet fills in for light, dark and paper; each series has a
dash pattern too, so that nothing rests on colour alone. Text keeps its size: a chart is drawn once for a wide and once
for a narrow screen, and the page shows one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDE, NARROW = 920, 340
"""Widths in CSS pixels, of a wide page and of a phone's."""

_LEFT, _TOP, _BOTTOM = 56, 10, 40
_LINE = 15
"""Least distance of two labels."""

_CHARACTER = 6.6
"""Width of a label's character, on the safe side."""

_TICKS = 5

_ROOMY = 420
"""A chart less wide has fewer ticks."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        steps: the value holds until the next point, instead of being joined to it.
        dots: its points are marked.
    """

    label: str
    points: Sequence[tuple[float, float]]
    steps: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Bound:
    """A horizontal line that a series must not cross."""

    label: str
    value: float


@dataclass(frozen=True)
class Chart:
    """Lines over two axes; what is not finite, or not above 0 on a logarithmic axis, is left out.

    Attributes:
        title: names what the vertical axis measures, with its unit.
        show: a value of the vertical axis as text.
        least: the vertical axis shows at least these values; `start`, the horizontal one at least this.
        wide: width of the larger drawing, in CSS pixels.
        label_space: right of the plot, for charts that stand below one another; None: what the labels need.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    bounds: Sequence[Bound] = ()
    logarithmic: bool = False
    show: Callable[[float], str] = "{:g}".format
    least: tuple[float, ...] = ()
    start: float | None = None
    wide: int = WIDE
    label_space: float | None = None
    height: int = 230

    def draw(self) -> Markup:
        """Return a figure with both sizes, of which the style sheet shows one."""
        return Markup(
            '<figure><figcaption>{}</figcaption><div class="wide">{}</div><div class="narrow">{}</div></figure>'
        ).format(self.title, self._draw(self.wide), self._draw(NARROW))

    def _draw(self, width: int) -> Markup:
        drawn = [
            (index, series, [point for point in series.points if self._can_show(point[1])])
            for index, series in enumerate(self.series)
        ]
        drawn = [found for found in drawn if found[2]]
        if not drawn:
            return Markup('<p class="none">nothing to draw</p>')
        labels = [series.label for _, series, _ in drawn] + [bound.label for bound in self.bounds]
        right = min(self.label_space or max(map(len, labels)) * _CHARACTER + 12, width * 0.36)
        xs = [x for _, _, points in drawn for x, _ in points]
        xs += [self.start] if self.start is not None else []
        ys = [y for _, _, points in drawn for _, y in points]
        ys += [bound.value for bound in self.bounds] + [value for value in self.least if self._can_show(value)]
        x_axis = _Axis.linear(min(xs), max(xs), _LEFT, width - right, width < _ROOMY)
        y_axis = (_Axis.logarithmic if self.logarithmic else _Axis.linear)(
            min(ys), max(ys), self.height - _BOTTOM, _TOP, width < _ROOMY
        )
        parts = [self._frame(width, right, x_axis, y_axis)]
        ends: list[tuple[float, str, str]] = []
        for bound in self.bounds:
            y = y_axis.at(bound.value)
            parts.append(f'<path class="bound" d="M{_LEFT} {y:.1f}H{width - right:.1f}"/>')
            ends.append((y, bound.label, "bound"))
        for index, series, points in drawn:
            placed = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
            parts.append(f'<path class="line s{index}" d="{_path(placed, series.steps)}"/>')
            if series.dots or len(placed) == 1:
                parts += [f'<circle class="dot s{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
            ends.append((placed[-1][1], series.label, f"s{index}"))
        parts += _labels(ends, width - right + 8, _TOP, self.height - _BOTTOM)
        summary = "; ".join(
            f"{series.label} from {self.show(points[0][1])} to {self.show(points[-1][1])}"
            for _, series, points in drawn
        )
        return Markup(
            f'<svg viewBox="0 0 {width} {self.height}" role="img" style="max-width:{width}px" '
            f'aria-label="{escape(self.title)}: {escape(summary)}">{"".join(parts)}</svg>'
        )

    def _can_show(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.logarithmic)

    def _frame(self, width: int, right: float, x_axis: _Axis, y_axis: _Axis) -> str:
        floor = self.height - _BOTTOM
        parts = []
        for value in y_axis.ticks:
            y = y_axis.at(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - right:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}">{_minus(self.show(value))}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{width - right:.1f}"/>')
        for value in x_axis.ticks:
            x = x_axis.at(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {floor}v4"/>')
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{floor + 18}">{value:,.6g}</text>')
        middle = (_LEFT + width - right) / 2
        parts.append(f'<text class="tick middle" x="{middle:.1f}" y="{floor + 35}">{escape(self.x_label)}</text>')
        return "".join(parts)


def interval(value: float, lower: float, upper: float, least: float = 0.0, most: float = 1.0) -> Markup:
    """Return a point with its interval on an axis from `least` to `most`, to stand within a table."""
    width, height = 160, 16

    def at(value: float) -> float:
        return 4 + (width - 8) * (min(max(value, least), most) - least) / (most - least)

    zero = f'<path class="axis" d="M{at(0):.1f} 1V15"/>' if least < 0 < most else ""
    return Markup(
        f'<svg class="interval" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<path class="grid" d="M4 8H{width - 4}"/>{zero}<path class="line s0" d="M{at(lower):.1f} 8H{at(upper):.1f}"/>'
        f'<circle class="dot s0" cx="{at(value):.1f}" cy="8" r="4"/></svg>'
    )


@dataclass(frozen=True)
class _Axis:
    """Values to pixels, and which values to name."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        share = (self.scale(value) - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float, narrow: bool) -> _Axis:
        """Return an axis with bounds at round values, 1, 2 or 5 times a power of ten apart."""
        if low == high:
            low, high = (low - 1, high + 1) if low else (0.0, 1.0)
        rough = (high - low) / (_TICKS - 1 if not narrow else _TICKS - 2)
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    @classmethod
    def logarithmic(cls, low: float, high: float, start: float, end: float, narrow: bool) -> _Axis:
        """Return an axis with ticks at powers of ten; at 1, 2 and 5 times these where there are few."""
        first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        ticks = tuple(
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if low / 1.5 <= factor * 10.0**power <= high * 1.5
        )
        return cls(math.log10(low / 1.2), math.log10(high * 1.2), start, end, ticks, math.log10)


def _minus(number: str) -> str:
    return escape(number).replace("-", "−")


def _path(points: Sequence[tuple[float, float]], steps: bool) -> str:
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for x, y in rest:
        parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _labels(ends: Sequence[tuple[float, str, str]], x: float, top: float, bottom: float) -> list[str]:
    """Return each label beside the end of its line, moved as little as keeps them apart and within the chart."""
    ordered = sorted(ends)
    heights = [max(y, top) for y, _, _ in ordered]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + _LINE)
    limit = bottom
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], limit)
        limit = heights[index] - _LINE
    return [
        f'<text class="label {kind}" x="{x:.1f}" y="{height + 4:.1f}">{escape(label)}</text>'
        for height, (_, label, kind) in zip(heights, ordered, strict=True)
    ]
