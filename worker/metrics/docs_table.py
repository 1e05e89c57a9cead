"""Documentation of all metrics, generated from the code."""

from worker.metrics.registry import Metrics
from worker.metrics.run_outcome import Outcome

_COMMON = ("job", "run", "rank")
_HEAD = "| metric | kind | labels | meaning |\n|---|---|---|---|"


def describe_metrics() -> str:
    """Return a Markdown table, without the labels `job` and `run`, which all metrics have."""
    shown = Metrics("", "", 0)
    rows = [*shown.entries(), *Outcome("", "").entries()]
    lines = []
    for entry in rows:
        labels = ", ".join(
            f"`{name}`" for name in entry.labels if name == "rank" or name not in _COMMON
        )
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {entry.text} |")
    return "\n".join([_HEAD, *lines])
