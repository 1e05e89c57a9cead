"""Charts and tables for a terminal, from plain numbers."""

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"


def sparkline(values: Sequence[float], top: float) -> str:
    """Return one character per value: a bar, full at `top` and above, or a dot for zero or less."""
    return "".join(
        _BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] if value > 0 else _NOTHING
        for value in values
    )


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return aligned lines: the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bar(done: float, width: int = 10) -> str:
    """Return a bar of `width` characters, filled to the fraction `done`."""
    full = round(min(1.0, max(0.0, done)) * width)
    return "█" * full + "░" * (width - full)


def duration(seconds: float) -> str:
    """Format a duration as `3:07`, or as `1:02:03` for an hour or more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
