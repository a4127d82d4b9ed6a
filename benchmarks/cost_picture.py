"""Draw the cost of a page against the number of its lines, as SVG with logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

Curve = Sequence[tuple[int, float]]

_WIDTH: Final = 720
_HEIGHT: Final = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 180, 30, 50
_COLOURS: Final = ("#c0392b", "#8e44ad", "#d68910", "#2471a3", "#1e8449")


def draw(curves: Mapping[str, Curve]) -> str:
    """Return the picture, with a labelled curve for each name.

    Args:
        curves: pairs of a number of lines and a time in seconds, by name.
    """
    series = [x for curve in curves.values() for x, _ in curve]
    seconds = [y for curve in curves.values() for _, y in curve]
    axes = _Axes(min(series), max(series), min(seconds), max(seconds))
    parts = [_frame(axes)]
    for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in curve)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in curve
        ]
        x, y = curve[-1]
        parts.append(
            f'<text x="{axes.x(x) + 10:.1f}" y="{axes.y(y) + 4:.1f}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


class _Axes:
    def __init__(self, least_x: float, most_x: float, least_y: float, most_y: float) -> None:
        self._x = math.log10(least_x), math.log10(most_x)
        self.decades = range(math.floor(math.log10(least_y)), math.ceil(math.log10(most_y)) + 1)

    def x(self, series: float) -> float:
        least, most = self._x
        share = (math.log10(series) - least) / ((most - least) or 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, seconds: float) -> float:
        least, most = self.decades[0], self.decades[-1]
        share = (math.log10(seconds) - least) / ((most - least) or 1)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def series_marks(self) -> list[int]:
        least, most = self._x
        marks = [330, 1_000, 3_000, 10_000, 30_000, 65_000]
        return [mark for mark in marks if least - 0.01 <= math.log10(mark) <= most + 0.01]


def _frame(axes: _Axes) -> str:
    parts = [f'<text x="{_LEFT}" y="18" fill="#333">processor time of one page</text>']
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for decade in axes.decades:
        y = axes.y(10.0**decade)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#333">'
            f"{_time(10.0**decade)}</text>"
        )
    for mark in axes.series_marks():
        x = axes.x(mark)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#333">{mark:,}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle" fill="#333">'
        "lines on the page</text>"
    )
    return "\n".join(parts)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size * 0.999:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0e} s"
