"""Charts for a terminal and as SVG files, from plain numbers."""

import math
from collections.abc import Sequence
from html import escape

_BARS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"
_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 52
_TICKS = 5


def sparkline(values: Sequence[float], top: float) -> str:
    """One character per value, of a height relative to `top`; a dot for 0."""
    return "".join(
        _BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] if value > 0 else _NOTHING
        for value in values
    )


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned lines, the first `left` columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def svg_curve(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A curve over a logarithmic x axis as an SVG document, with named vertical marks.

    Readable on light and dark pages. Points must have a positive x and a finite y.
    """
    xs = [math.log10(x) for x, _ in points]
    ys = [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / y_span * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        "<style>text{font:12px sans-serif;fill:#444}.t{font-size:15px;font-weight:600}"
        ".g{stroke:#888;stroke-opacity:.25}.c{fill:none;stroke:#3572c6;stroke-width:2}"
        ".m{stroke:#d9542b;stroke-width:1.5;stroke-dasharray:4 3}rect{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}rect{fill:#181a1d}.c{stroke:#6ea8ff}}"
        "</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text class="t" x="{_LEFT}" y="24">{escape(title)}</text>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{_LEFT}" y="{_TOP - 6}" text-anchor="end">{escape(y_label)}</text>',
    ]
    for number in range(_TICKS):
        y = y_low + y_span * number / (_TICKS - 1)
        parts.append(
            f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(y):.1f}" '
            f'y2="{down(y):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
        )
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        parts.append(
            f'<line class="g" x1="{across(power):.1f}" x2="{across(power):.1f}" y1="{_TOP}" '
            f'y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text x="{across(power):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"1e{power}</text>"
        )
    line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<polyline class="c" points="{line}"/>')
    for row, (x, name) in enumerate(marks):
        at = across(math.log10(x))
        anchor = "end" if at > _WIDTH / 2 else "start"
        beside, low = at + (-6 if anchor == "end" else 6), _HEIGHT - _BOTTOM - 10 - 16 * row
        parts.append(
            f'<line class="m" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text x="{beside:.1f}" y="{low}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
