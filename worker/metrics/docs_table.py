"""The documentation of all metrics, from what the code declares."""

from worker.metrics.registry import Metrics
from worker.metrics.run_outcome import Outcome

_COMMON = ("job", "run", "rank")
_HEAD = "| metric | kind | labels | meaning |\n|---|---|---|---|"


def describe_metrics() -> str:
    """A table in Markdown; every metric has `job` and `run`, and those of one rank have `rank`."""
    shown = Metrics("", "", 0)
    rows = [*shown.entries(), *Outcome("", "").entries()]
    lines = []
    for entry in rows:
        labels = ", ".join(
            f"`{name}`" for name in entry.labels if name == "rank" or name not in _COMMON
        )
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {entry.text} |")
    return "\n".join([_HEAD, *lines])
