"""Commands for existing runs."""

import contextlib
import itertools
import json
import shutil
import sys
import textwrap
import time

import click

from worker.cli.group import main
from worker.cli.streams import has_reader
from worker.errors import DataError
from worker.redaction import redacted

_WATCH_SECONDS = 5.0
_ENDS = ("done", "failed")


@main.command()
@click.argument("run")
@click.option("--watch", is_flag=True, help="Keep refreshing until the run is done or has failed.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(*, run: str, watch: bool, as_json: bool) -> None:
    """Show the progress of RUN: state, step, speed, last commit, attempt, expected end.

    RUN is the output of a job, of a sweep, or of `worker predict --out`. Only the store is read, so
    the figures may be up to half a minute old. A run without an update for a minute and a half is
    shown as `silent`.
    """
    from worker.report.state import read_state
    from worker.store import open_store

    store = open_store(run)
    lines = 0
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends a watch
        while True:
            state, fields, text = read_state(store)
            text = json.dumps(fields) if as_json else text
            live = watch and sys.stdout.isatty() and not as_json
            if lines:
                # Move the cursor up over the previous output and clear to the end of the screen.
                click.echo(f"\x1b[{lines}A\x1b[J" if live else "", nl=not as_json and not live)
            if live:  # the cursor cannot move up past the top, nor knows of wrapped lines
                width, height = shutil.get_terminal_size()
                text = "\n".join(_wrapped(text, width)[: height - 1])
            click.echo(text)
            if not watch or state.startswith(_ENDS) or not has_reader():
                return
            lines = text.count("\n") + 1
            time.sleep(_WATCH_SECONDS)


def _wrapped(text: str, width: int) -> list[str]:
    """Return the rows of a terminal that lines take, so that nothing of them is lost."""
    rows = [
        textwrap.wrap(line, width, subsequent_indent="  ") or [""] for line in text.splitlines()
    ]
    return list(itertools.chain.from_iterable(rows))


@main.command()
@click.argument("run")
@click.option(
    "--out", default="report.html", show_default=True, help="Path or address; - for stdout."
)
def report(run: str, out: str) -> None:
    """Write a report on RUN: curves, rates, attempts, classes, mistakes, settings.

    RUN is the output of a job, finished or not. The report is a single HTML file that needs no
    network. For a sweep, a folder beside it holds the reports on its runs.
    """
    from worker.report.html_page import run_page
    from worker.report.read_run import read_run
    from worker.report.sweep_pages import write_sweep_pages
    from worker.store import open_store, write_uri
    from worker.sweep.plan import read_plan

    plan = read_plan(open_store(run))
    if plan:
        write_sweep_pages(plan, open_store(run), out)
        click.echo(f"report: {out}")
        return
    page = run_page(read_run(open_store(run)))
    if out == "-":
        click.echo(page)
    else:
        write_uri(out, page.encode())
        click.echo(f"report: {out}")


@main.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print all settings and results as JSON.")
@click.option("--out", help="Also write a page with the curves, to this path or address.")
def compare(*, runs: tuple[str, ...], as_json: bool, out: str | None) -> None:
    """Compare RUNS side by side: results, and the settings that differ.

    A run is the output of a job, finished or not. A star marks the best value; the last
    row says whether the difference could be chance.
    """
    if len(runs) == 1:
        raise click.UsageError("compares two or more runs; for a single run, use `worker report`")
    from worker.report.compare import compare_runs, results_of
    from worker.report.html_page import compare_page
    from worker.report.read_run import read_run
    from worker.store import open_store, write_uri

    found = [read_run(open_store(run)) for run in runs]
    if out:
        write_uri(out, compare_page(found).encode())
    if as_json:
        columns = [
            {
                "run": run.status.job,
                "output": run.status.run,
                "settings": run.settings,
                "result": results_of(run),
            }
            for run in found
        ]
        click.echo(json.dumps(columns, indent=1))
    else:
        click.echo(str(compare_runs(found)))
    if out:
        click.echo(f"page: {out}", err=True)


@main.command()
@click.argument("run")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="tensorboard:DIR|mlflow:URL|wandb:DIR",
    help="Where to.",
)
def export(run: str, target: str) -> None:
    """Copy the record of RUN to an experiment tracker: settings, curves and final figures.

    Only the store is read, so a run can be exported at any time, from anywhere, again and again:
    there is one run per output in the tracker, with the steps that count after all resumes.
    """
    from worker.trackers.export import export_run

    click.echo(f"exported: {redacted(export_run(run, target))}")


@main.command()
@click.argument("run")
def audit(run: str) -> None:
    """Prove from the ledger of RUN that each epoch used each sample as often as planned.

    That is exactly once, unless `data.balance` repeats samples or other settings leave some out.
    RUN is the output of a job whose manifest sets `record: {samples: true}`, or that of `worker
    predict --out`, where each image must be predicted exactly once. Exits with 65 if a sample
    was lost or repeated; bad samples left out within the job's budget are listed.
    """
    from worker.launch.audit import audit_output

    lines, faults = audit_output(run)
    click.echo("\n".join(lines))
    if faults:
        raise DataError(f"{redacted(run)}: {faults} samples lost or repeated")
