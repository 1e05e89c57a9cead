"""SVG charts for light, dark and printed pages, drawn with matplotlib."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from worker.numbers import ceil_div

matplotlib.use("agg")

# Colors that stand for roles; the page defines the actual ones. Viewers that do not support CSS
# variables use these as a fallback.
_ROLES = {
    "#4a5057": "ink",
    "#d9dde1": "grid",
    "#c2410c": "mark",
    "#2563b0": "c0",
    "#b45a09": "c1",
    "#1a7f4b": "c2",
    "#8b3fb5": "c3",
    "#b03060": "c4",
    "#0f7d8c": "c5",
    "#7a6a00": "c6",
    "#5b6470": "c7",
}
INK, _GRID, MARK = list(_ROLES)[:3]
COLORS = tuple(list(_ROLES)[3:])
_MAX_LEGEND = 12  # entries; if there are more lines, only every nth is listed
_MIN_DISTANCE = 0.15  # between labels of marks, as a share of the x axis
_ZERO_WIDTH = "\u200b"
# Ratio of the axis limits below which ticks at powers of ten alone would be too few.
_FEW_DECADES = 300
_STEPS = (1, 2, 5, 10)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keeps text as text: searchable, and in the page's font
    "svg.hashsalt": "worker",  # makes equal charts equal byte for byte
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "ytick.minor.left": False,
    "xtick.minor.bottom": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")
_COLOUR = re.compile("|".join(_ROLES), re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points."""

    name: str
    """Its name in the legend; empty to leave it out there."""
    x: Sequence[float]
    """Horizontal coordinates."""
    y: Sequence[float]
    """Vertical coordinates; NaN leaves a gap."""
    color: int = 0
    """Index of its color."""
    dots: bool = False
    """Whether each point is marked."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over an x axis."""

    title: str
    """Its title."""
    x_label: str
    """The label of the x axis."""
    lines: Sequence[Line]
    """The lines."""
    marks: Sequence[tuple[float, str]] = ()
    """Labeled vertical lines, as position and label."""
    rules: Sequence[float] = ()
    """Positions of unlabeled vertical lines."""
    dots: Sequence[tuple[float, float]] = ()
    """Single points."""
    log_x: bool = False
    """Whether the x axis is logarithmic."""
    log_y: bool = False
    """Whether the y axis is logarithmic."""
    y_range: tuple[float | None, float | None] = (None, None)
    """Bounds of the y axis; None to fit a bound to the lines."""
    percent: bool = False
    """Whether y is shown in percent."""
    whole: bool = False
    """Whether y values are integers."""
    size: tuple[float, float] = (6.0, 2.9)
    """Width and height, in inches."""


def draw(chart: Chart) -> str:
    """Draw a chart as an SVG element; its colors are `var(--NAME)` with a fallback."""

    def fill(axes: Axes) -> None:
        colors = _colors(max((line.color for line in chart.lines), default=0) + 1)
        for line in chart.lines:
            _add(axes, line, colors[line.color])
        _frame(axes, chart)
        handles, names = axes.get_legend_handles_labels()
        every = ceil_div(len(names), _MAX_LEGEND)
        if len(names) > 1:
            handles, names = handles[::every], names[::every]
            look: Any = {"ncols": 4, "fontsize": 8, "handlelength": 1.4}
            axes.figure.legend(handles, names, loc="outside lower left", **look)

    return draw_with(fill, chart.size)


def draw_with(fill: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """Draw an SVG element in the style of the pages.

    Args:
        fill: Draws on the axes, with the colors of this module.
        size: Width and height, in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        fill(figure.add_subplot())
        out = io.StringIO()
        # Without a date, equal charts are equal byte for byte.
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _themed(out.getvalue())


def standalone(svg: str) -> str:
    """Turn an SVG element into a document that follows the system's light or dark mode."""
    style = (
        "<style>svg{background:#fff}@media(prefers-color-scheme:dark){svg{background:#16181b;"
        "--ink:#c3c8ce;--grid:#33383e;--mark:#fb8a5a;--c0:#6aa7f5}}</style>"
    )
    head, _, rest = svg.partition(">")
    return f"{head}>{style}{rest}"


def _colors(count: int) -> Sequence[str]:
    """Return the page's colors, or a continuous color ramp if there are too few of them."""
    if count <= len(COLORS):
        return COLORS
    # Leave out both ends of the ramp, which are hard to see on a dark or a light page.
    shades = matplotlib.colormaps["viridis"]
    return [to_hex(shades(0.1 + 0.8 * number / (count - 1))) for number in range(count)]


def _add(axes: Axes, line: Line, color: str) -> None:
    axes.plot(
        line.x,
        line.y,
        # matplotlib hides names that begin with an underscore.
        label=_ZERO_WIDTH + line.name if line.name else "_",
        color=color,
        marker="o" if line.dots or len(line.x) == 1 else None,
        markersize=3.5,
    )


def _frame(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x_label)
    _scale(axes, chart)
    low, high = chart.y_range
    axes.set_ylim(bottom=low, top=high)
    if chart.dots:
        xs, ys = zip(*chart.dots, strict=True)
        axes.scatter(xs, ys, s=16, color=INK, zorder=3, label="checkpoint")
    for x in chart.rules:
        axes.axvline(x, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
    named = -math.inf
    span = abs(axes.get_xlim()[1] - axes.get_xlim()[0])
    for x, name in sorted(chart.marks):
        axes.axvline(x, color=MARK, linewidth=1, linestyle=(0, (3, 2)))
        if chart.log_x or x - named > _MIN_DISTANCE * span:
            # This transform takes x in data coordinates and y as a share of the height.
            named, place = x, axes.get_xaxis_transform()
            axes.text(x, 0.98, f" {name}", transform=place, color=MARK, fontsize=8, va="top")


def _scale(axes: Axes, chart: Chart) -> None:
    """Set the scales, ticks and tick labels of the axes."""
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=chart.x_label == "step"))
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.set_xlim(left=0)
    if chart.log_y:
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        if top < _FEW_DECADES * bottom:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif chart.whole:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    if chart.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def _themed(document: str) -> str:
    # Drop the XML declaration and the DOCTYPE, which HTML does not allow in the middle of a page.
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _FONT.sub("system-ui, sans-serif", svg)
    return _COLOUR.sub(lambda m: f"var(--{_ROLES[m[0].lower()]}, {m[0]})", svg)
