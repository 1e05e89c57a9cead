"""The pages of a sweep: its own, and those of its runs in a folder beside it."""

from urllib.parse import quote

from worker.errors import ConfigurationError
from worker.report.html_page import run_page
from worker.report.read_run import read_run
from worker.report.sweep_page import sweep_page
from worker.report.sweep_status import read_sweep_status
from worker.store import Store, open_store, write_uri
from worker.sweep.plan import SweepPlan


def write_sweep_pages(plan: SweepPlan, store: Store, out: str) -> None:
    """Write the page of a sweep, and those of all runs that have begun.

    Args:
        plan: The plan of the sweep.
        store: Its output.
        out: Path or address of its page; the folder of the others is named after it.

    Raises:
        ConfigurationError: If the page is to go to stdout, where there is no folder.
    """
    if out == "-":
        raise ConfigurationError("--out: the report on a sweep is several pages; give a path")
    base = out.removesuffix(".html")
    folder = f"{quote(base.rpartition('/')[2])}-runs"
    begun = {key for info in store.list("trials/") if (key := _begun(info.key))}
    links: dict[int, list[tuple[str, str]]] = {}
    for trial in range(len(plan.trials)):
        for repeat, settings in enumerate(plan.repeats):
            output = plan.job_output(trial, repeat)
            if output not in begun:
                continue
            run = output.rstrip("/").rpartition("/")[2]
            page = run_page(read_run(open_store(f"{store.uri}{output}")))
            write_uri(f"{base}-runs/{run}.html", page.encode())
            shown = ", ".join(f"{path.rpartition('.')[2]} {v}" for path, v in settings.items())
            links.setdefault(trial, []).append((shown or "report", f"{folder}/{run}.html"))
    write_uri(out, sweep_page(plan, read_sweep_status(plan, store), links).encode())


def _begun(key: str) -> str:
    """Return the output of the job that an attempt's record belongs to; empty for other objects."""
    output, attempts, _ = key.partition("attempts/")
    return output if attempts else ""
