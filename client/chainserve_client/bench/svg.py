"""Small plots as SVG: lines and stacked areas over axes with round ticks. No library is needed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 40, 52
LEGEND_ROW = 20
NUM_TICKS = 6
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
"""Okabe and Ito's, which most people with unusual sight of colours can tell apart."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) in the order of x, under a name."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str | None = None
    """None: the next of the usual ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What a plot is called, and its axes, which begin at 0."""

    title: str
    x: str
    y: str
    max_x: float
    max_y: float


def lines(series: Sequence[Series], axes: Axes) -> str:
    """Each series as a line."""
    return _document(series, axes, [_polyline(axes, each, colour) for each, colour in _coloured(series)])


def stacked(series: Sequence[Series], axes: Axes) -> str:
    """Each series as an area on top of those before it; all have points at the same x."""
    shapes = []
    below = [0.0] * len(series[0].points) if series else []
    for each, colour in _coloured(series):
        above = [low + y for low, (_, y) in zip(below, each.points, strict=True)]
        xs = [x for x, _ in each.points]
        edge = [*zip(xs, above, strict=True), *reversed(list(zip(xs, below, strict=True)))]
        shapes.append(f'<polygon points="{_pixels(axes, edge)}" fill="{colour}" fill-opacity="0.85"/>')
        below = above
    return _document(series, axes, shapes)


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to the last one that is not above `top`, about NUM_TICKS of them."""
    if not top > 0:
        return [0.0]
    rough = top / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.floor(top / step + 1e-9) + 1)]


def _coloured(series: Sequence[Series]) -> list[tuple[Series, str]]:
    return [(each, each.colour or COLOURS[place % len(COLOURS)]) for place, each in enumerate(series)]


def _polyline(axes: Axes, series: Series, colour: str) -> str:
    return f'<polyline points="{_pixels(axes, series.points)}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_x(axes, x):.1f},{_y(axes, y):.1f}" for x, y in points)


def _x(axes: Axes, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / (axes.max_x or 1.0)


def _y(axes: Axes, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / (axes.max_y or 1.0)


def _document(series: Sequence[Series], axes: Axes, shapes: Sequence[str]) -> str:
    height = HEIGHT + LEGEND_ROW * len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(axes.title)}</text>',
        *_grid(axes),
        *shapes,
        *_legend(series),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(axes: Axes) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(axes.max_x):
        x = _x(axes, value)
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>'
    for value in ticks(axes.max_y):
        y = _y(axes, value)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e4e4e4"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    yield f'<text x="{(LEFT + right) / 2:.0f}" y="{bottom + 40}" text-anchor="middle">{escape(axes.x)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(axes.y)}</text>'
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>'


def _legend(series: Sequence[Series]) -> Iterator[str]:
    for row, (each, colour) in enumerate(_coloured(series)):
        y = HEIGHT + LEGEND_ROW * row
        yield f'<rect x="{LEFT}" y="{y - 3}" width="14" height="10" fill="{colour}"/>'
        yield f'<text x="{LEFT + 22}" y="{y + 6}">{escape(each.name)}</text>'
