"""The chart of a sweep over base rates."""

from worker.learn.rate_sweep import Sweep, clipped
from worker.plots import Chart, Line, draw, standalone


def draw_sweep(sweep: Sweep, name: str) -> str:
    """Draw the sweep as an SVG document."""
    rate = sweep.suggestion
    chart = Chart(
        title=f"{name}: smoothed loss over base rate",
        x_label="base rate",
        lines=[Line(name="loss", x=sweep.rates, y=clipped(sweep))],
        marks=[(rate, f"suggested {rate:.1e}")] if rate is not None else [],
        log_x=True,
    )
    return standalone(draw(chart))
