"""The charts and data of `worker find-rates`."""

from matplotlib.axes import Axes

from worker.learn.rate_diagnosis import SIGNAL, Diagnosis
from worker.learn.rate_sweep import Sweep, clipped
from worker.plots import COLORS, MARK, Chart, Line, draw, draw_with, standalone
from worker.store import Store
from worker.store.json_records import put_json

_SIZE = (8.0, 5.2)


def write_sweep(store: Store, sweep: Sweep, name: str) -> str:
    """Write chart.svg and sweep.json; return the address of the chart.

    Args:
        store: The folder for them.
        sweep: The sweep over base rates.
        name: The name of the job, for the title.
    """
    rate = sweep.suggestion
    chart = Chart(
        title=f"{name}: smoothed loss over base rate",
        x_label="base rate",
        lines=[Line(name="loss", x=sweep.rates, y=clipped(sweep))],
        marks=[(rate, f"suggested {rate:.1e}")] if rate is not None else [],
        log_x=True,
    )
    store.put("chart.svg", standalone(draw(chart)).encode())
    put_json(store, "sweep.json", sweep.as_dict())
    return f"{store.uri}chart.svg"


def write_diagnosis(store: Store, diagnosis: Diagnosis, name: str) -> str:
    """Write groups.svg and groups.json; return the address of the chart.

    Args:
        store: The folder for them.
        diagnosis: The diagnosis.
        name: The name of the job, for the title.
    """
    blocks = diagnosis.blocks

    def fill(axes: Axes) -> None:
        places = range(len(blocks))
        axes.bar(places, [block.signal for block in blocks], color=COLORS[0], width=0.6)
        axes.axhline(SIGNAL, color=MARK, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xticks(places, [block.name for block in blocks], rotation=45, ha="right")
        axes.set_ylim(0, max(0.2, 1.05 * max(block.signal for block in blocks)))
        axes.set_ylabel("share of the gradient that is signal")
        axes.set_title(f"{name}: signal by block, from the input to the head")
        axes.grid(visible=False, axis="x")

    store.put("groups.svg", standalone(draw_with(fill, _SIZE)).encode())
    put_json(store, "groups.json", diagnosis.as_dict())
    return f"{store.uri}groups.svg"
