"""Commands that train, or that preview or check a job."""

import json
import os
import sys

import click

from worker.cli.group import main, progress_bar, settle_torch
from worker.errors import ExitCode
from worker.logs import is_live
from worker.redaction import redacted


@main.command()
@click.argument("manifest")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    help="Ranks to start on this machine; default: one per GPU, or one on the CPU.",
)
@click.option(
    "--until",
    type=click.IntRange(min=1),
    metavar="EPOCH",
    help="Stop with exit code 75 once this many epochs are trained, evaluated and saved.",
)
@click.pass_obj
def train(log_format: str, manifest: str, nproc: int | None, until: int | None) -> int:
    """Train the job in MANIFEST, or resume it from its last checkpoint.

    Stops on SIGTERM, SIGUSR1, SIGUSR2, SIGHUP or Ctrl-C with everything committed (exit code 75);
    the same command resumes from there, on this or any other machine, with any number of ranks.
    """
    from worker.ranks.stop_signal import StopFlag

    stop = StopFlag()
    stop.install()
    from worker.manifest import load_manifest  # takes a while; a signal may come meanwhile

    # Any mistake in the manifest is reported before torch is imported, which takes seconds.
    loaded = load_manifest(manifest)
    settle_torch()
    from worker.launch.start import run_job

    return run_job(loaded, nproc, stop, live=is_live(log_format), until=until)


@main.command()
@click.argument("manifest")
@click.option("--ranks", type=click.IntRange(min=1), default=1, help="Number of ranks to plan for.")
@click.option(
    "--resume", is_flag=True, help="Verify the checkpoint from which a start would resume."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def plan(*, manifest: str, ranks: int, resume: bool, as_json: bool) -> None:
    """Preview the job in MANIFEST, with its groups and learning rates, without training.

    Checks everything that `train` checks before it starts: the manifest, data, weights and groups.
    With --resume, it also reads the checkpoints as a start would, and reports the changes since the
    last attempt and whether they are accepted or refused.
    """
    from worker.manifest import load_manifest

    loaded = load_manifest(manifest)
    from worker.job.job import require_same_experiment
    from worker.job.open_job import open_job
    from worker.job.outline import outline_job
    from worker.job.outline_text import describe_outline
    from worker.job.resume_preview import describe_resume_preview, find_resume_preview
    from worker.launch.topology import require_divisible
    from worker.model.pretrained_weights import load_pretrained

    require_divisible(loaded.train.batch_size, ranks)
    job = open_job(loaded)
    if loaded.model.pretrained:
        load_pretrained(job.backbone, loaded.model.pretrained)
    if not resume:
        require_same_experiment(job)
    outline = outline_job(job, ranks)
    preview = find_resume_preview(job) if resume else None
    if as_json:
        more = {"resume": preview.as_dict()} if preview else {}
        click.echo(json.dumps({**outline.as_dict(), **more}, indent=1))
    else:
        click.echo(describe_outline(outline))
        click.echo(f"\n{describe_resume_preview(preview)}" if preview else "", nl=bool(preview))
    # With --resume, check this only after the preview, which shows what has changed.
    require_same_experiment(job)


@main.command()
@click.argument("manifest")
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Number of ranks of the job if they will not start here, as when this runs in a "
    "batch script or in an init container without GPUs.",
)
@click.option("--nproc", type=click.IntRange(min=1), help="As for `train`.")
def check(manifest: str, ranks: int | None, nproc: int | None) -> int:
    """Check everything that MANIFEST needs in this environment, without training.

    Environment, credentials, every permission needed in the store, data, classes, weights, groups,
    ranks and their rendezvous, scratch, shared memory and metrics: one row each, with the remedy
    for each failure. Exits with 0 if nothing fails, with 78 if something has to be corrected, with
    69 if storage does not answer, or with 75 if it is stopped. Takes seconds and needs no GPU.
    """
    from worker.ranks.stop_signal import StopFlag

    StopFlag().install()  # a pod that is evicted while it checks has not failed
    from worker.check.manifest import look_at_manifest, probe_environment
    from worker.check.table import Table

    table = Table()
    table.look("environment", probe_environment)
    if sys.stdout.isatty():  # a person is waiting; a job would rather sit out an outage
        os.environ.setdefault("WORKER_STORE_DEADLINE_SECONDS", "10")
    loaded = look_at_manifest(table, manifest)
    if loaded or table.storage_fails:
        from worker.check.preflight import look_at_place

        look_at_place(table, loaded, ranks, nproc)
    else:
        table.skip("everything else", "the manifest cannot be used")
    click.echo(redacted(str(table)))
    return table.code


@main.command("find-rates")
@click.argument("manifest")
@click.option("--steps", type=click.IntRange(min=10), default=200, show_default=True)
@click.option("--low", type=click.FloatRange(min=0, min_open=True), help="First base rate.")
@click.option("--high", type=click.FloatRange(min=0, min_open=True), help="Last base rate.")
@click.option("--groups", is_flag=True, help="Diagnose the rate of each group and block instead.")
@click.option(
    "--batches",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="With --groups: batches whose gradients are compared.",
)
@click.option("--nproc", type=click.IntRange(min=1), help="With --groups: ranks, as for `train`.")
@click.option(
    "--out", help="Address of a folder for the chart and data; default: find-rates/ in the output."
)
def find_rates(
    *,
    manifest: str,
    steps: int,
    low: float | None,
    high: float | None,
    groups: bool,
    batches: int,
    nproc: int | None,
    out: str | None,
) -> None:
    """Sweep the base rate of MANIFEST and suggest one, or diagnose the rates of its groups.

    The head of a pretrained model is trained first, on features that are computed once. Then one
    rank trains for some steps while the base rate grows, by default from a thousandth of
    optimizer.lr to a hundred times that rate. Every group keeps its ratio to the base rate, and
    groups that are frozen only at first take part too. Only chart.svg and sweep.json are kept, in
    find-rates/ below the output or in the folder that --out names.

    With --groups, no weight changes: the gradients of some batches are compared, for each group
    and block. Shown are their norm relative to the weights, the share of them that is signal, and
    how far an update would move the weights; groups.svg and groups.json are kept.
    """
    from worker.ranks.stop_signal import StopFlag

    stop = StopFlag(commits=False)
    stop.install()
    from worker.manifest import load_manifest  # takes a while; a signal may come meanwhile

    loaded = load_manifest(manifest)
    settle_torch()
    from worker.launch.find_rates import run_diagnosis, run_range_test
    from worker.learn.rate_diagnosis import describe_diagnosis
    from worker.learn.rate_sweep import describe_sweep
    from worker.report.find_rates import write_diagnosis, write_sweep
    from worker.store import open_store

    if groups:
        with progress_bar(batches, "comparing") as bar:
            job, found = run_diagnosis(loaded, batches, nproc, stop=stop, advance=bar.update)
        text = describe_diagnosis(found)
        chart = write_diagnosis(open_store(out or job.find_rates), found, job.manifest.job)
    else:
        with progress_bar(steps, "sweeping") as bar:
            job, sweep = run_range_test(
                loaded, steps, low, high=high, stop=stop, advance=bar.update
            )
        text = describe_sweep(sweep, job.manifest.optimizer.lr)
        chart = write_sweep(open_store(out or job.find_rates), sweep, job.manifest.job)
    click.echo(f"{text}\nchart: {chart}")


@main.command()
@click.argument("manifest")
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks for each trial, as for `train`.")
@click.option("--dry-run", is_flag=True, help="Check and list the trials; write nothing.")
def sweep(manifest: str, nproc: int | None, *, dry_run: bool) -> int:
    """Run the trials of the sweep in MANIFEST, together with any other workers.

    Start the same command in any number of pods, array tasks or shells, at any time: they share
    the trials by way of the store, and take over those of workers that are lost. All settings are
    checked before any trial starts. Stops like `train`, with exit code 75.
    """
    from worker.ranks.stop_signal import StopFlag

    stop = StopFlag()
    stop.install()
    from worker.sweep.manifest import load_sweep

    loaded = load_sweep(manifest)
    settle_torch()
    from worker.launch.sweep import run_sweep
    from worker.launch.sweep_plan import describe_dry_run, plan_sweep

    if dry_run:
        click.echo(describe_dry_run(plan_sweep(loaded, nproc or 1)))
        return ExitCode.DONE
    return run_sweep(loaded, nproc, stop)
