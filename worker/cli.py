"""The command line; the only place that turns errors into exit codes.

Commands import what they need when they run: neither `--help` nor a stop signal waits for torch.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import click
from click._termui_impl import ProgressBar

from worker import __version__
from worker.errors import ConfigurationError, DataError
from worker.launch.guard import report
from worker.logs import configure_logs, count, is_live

_MIB = 1 << 20


def _progress(length: int, label: str) -> ProgressBar[int]:
    return click.progressbar(length=length, label=label, file=sys.stderr)


class _Commands(click.Group):
    """Ends an error of any command with one line and its exit code."""

    def invoke(self, ctx: click.Context) -> NoReturn:
        try:
            code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            code = report(error)
        sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="auto draws a live line on a terminal and writes text lines elsewhere.",
)
@click.pass_context
def main(ctx: click.Context, log_format: str) -> None:
    """Fine-tune image classifiers from and to S3-compatible storage.

    \b
    worker pack photos/ s3://datasets/photos/     image folder to shards
    worker index s3://datasets/tars/              index for shards that exist already
    worker models                                 the backbones, and their blocks to match on
    worker plan s3://bucket/job.yaml              what would be trained, at which rates
    worker find-rates s3://bucket/job.yaml        which base rate to take
    worker train s3://bucket/job.yaml             train, or go on where it stopped
    worker compare s3://runs/a/ s3://runs/b/      settings that differ, and results

    Every address is s3://BUCKET/PREFIX, file:///PATH or a path. Endpoint and credentials come from
    the usual AWS_* variables.

    \b
    Exit codes: 0 done, 2 wrong command line, 65 broken data, 69 infrastructure
    (run again), 70 bug, 75 stopped on request (run again), 76 superseded by a
    newer attempt, 78 wrong manifest, credentials or environment.
    """
    configure_logs(log_format)
    ctx.obj = log_format


@main.command()
@click.argument("manifest")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    help="Ranks to start on this machine; default: one per GPU, or one on the CPU.",
)
@click.pass_obj
def train(log_format: str, manifest: str, nproc: int | None) -> int:
    """Train what MANIFEST says, or go on from its last checkpoint.

    Stops on SIGTERM, SIGUSR1 or Ctrl-C with everything committed (exit code 75); the same command
    goes on from there, on this or any other machine and number of ranks.
    """
    from worker.train.stop import StopFlag

    stop = StopFlag()
    stop.install()
    # Waiting threads would spin by default, which next to busy neighbours or under a CPU quota
    # makes a step up to ten times slower. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worker.launch.start import train

    return train(manifest, nproc, stop, is_live(log_format))


@main.command()
@click.argument("manifest")
@click.option("--ranks", type=click.IntRange(min=1), default=1, help="Number of ranks to plan for.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def plan(manifest: str, ranks: int, as_json: bool) -> None:
    """Show what MANIFEST would train, at which rates, without training.

    Checks all that `train` checks before it starts: the manifest, data, weights and groups.
    """
    from worker.launch.topology import require_divisible
    from worker.manifest import load_manifest
    from worker.model.weights import load_pretrained
    from worker.train.describe import describe_outline
    from worker.train.job import open_job
    from worker.train.outline import outline_job

    loaded = load_manifest(manifest)
    require_divisible(loaded.train.batch_size, ranks)
    job = open_job(loaded)
    if loaded.model.pretrained:
        load_pretrained(job.backbone, loaded.model.pretrained)
    outline = outline_job(job, ranks)
    click.echo(json.dumps(outline.as_dict(), indent=1) if as_json else describe_outline(outline))


@main.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def models(pattern: str, as_json: bool) -> None:
    """List the backbones: parameters, input size, head, and the blocks to match on.

    PATTERN chooses by name, such as 'resnet*'. A block a+b has two names to match on, a and b;
    a.1..4 are four blocks.
    """
    from fnmatch import fnmatchcase

    from worker.model.catalogue import catalogue, describe_catalogue
    from worker.model.skeleton import known_models

    names = [name for name in known_models() if fnmatchcase(name, pattern)]
    if not names:
        raise click.BadParameter(f"no backbone is named {pattern!r}", param_hint="PATTERN")
    entries = catalogue(names)
    rows = [entry.as_dict() for entry in entries]
    click.echo(json.dumps(rows, indent=1) if as_json else describe_catalogue(entries))


@main.command("find-rates")
@click.argument("manifest")
@click.option("--steps", type=click.IntRange(min=10), default=200, show_default=True)
@click.option("--low", type=click.FloatRange(min=0, min_open=True), help="First base rate.")
@click.option("--high", type=click.FloatRange(min=0, min_open=True), help="Last base rate.")
@click.option("--out", help="Address of a folder for chart and numbers; default: in the output.")
def find_rates(
    manifest: str, steps: int, low: float | None, high: float | None, out: str | None
) -> None:
    """Sweep the base rate of MANIFEST and suggest one.

    Trains one rank for some steps while the base rate grows, by default from a thousandth to a
    hundred times of optimizer.lr. Every group keeps its ratio to it, and what is frozen for a while
    takes part. Nothing is kept but find-rates/chart.svg and find-rates/sweep.json below the output.
    """
    from worker.train.stop import StopFlag

    stop = StopFlag()
    stop.install()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from worker.launch.start import find_rates
    from worker.store import open_store
    from worker.train.find_rates import chart_of, describe_sweep

    if low and high and low >= high:
        raise click.UsageError("--low must be below --high")
    with _progress(steps, "sweeping") as bar:
        job, sweep = find_rates(manifest, steps, low, high, stop, bar.update)
    store = open_store(out or f"{job.output.uri}find-rates/")
    store.put("chart.svg", chart_of(sweep, job.manifest.job).encode())
    store.put("sweep.json", json.dumps(sweep.as_dict(), indent=1).encode())
    click.echo(describe_sweep(sweep, job.manifest.optimizer.lr))
    click.echo(f"chart: {store.uri}chart.svg")


@main.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="All settings and results as JSON.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Put RUNS side by side: results, and the settings that differ.

    A run is the output of a job, finished or not.
    """
    from worker.train.compare import describe_runs, read_runs

    columns = read_runs(runs)
    click.echo(json.dumps(columns, indent=1) if as_json else describe_runs(columns))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("dest")
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=64,
    show_default=True,
    help="Size of a shard in MiB of images, about.",
)
@click.option("--seed", default=0, show_default=True, help="Decides the order of the images.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Default: the number of cores."
)
@click.option("--overwrite", is_flag=True, help="Replace a data set that is at DEST.")
def pack(
    folder: Path, dest: str, shard_size: float, seed: int, threads: int | None, overwrite: bool
) -> None:
    """Pack the image FOLDER into WebDataset shards and an index at DEST.

    FOLDER holds one folder of images per class, or such trees in train/ and val/, which become
    DEST/train/ and DEST/val/. The same files and seed always give the same shards.
    """
    from worker.data.index import require_no_index
    from worker.data.pack import find_splits, write_split
    from worker.store import open_store

    splits = find_splits(folder)
    stores = [open_store(f"{dest.rstrip('/')}/{split.name}") for split in splits]
    if not overwrite:
        for store in stores:
            require_no_index(store, "choose another place")
    for split, store in zip(splits, stores, strict=True):
        with _progress(len(split.files), f"packing {split.name or 'images'}") as bar:
            index = write_split(
                split,
                store,
                int(shard_size * _MIB),
                seed,
                threads or len(os.sched_getaffinity(0)),
                lambda: bar.update(1),
            )
        skipped = f", {count(split.skipped, 'other file')} left out" if split.skipped else ""
        click.echo(
            f"{store.uri}: {count(index.samples, 'image')} of {len(index.classes)} classes "
            f"in {count(len(index.shards), 'shard')}{skipped}"
        )


@main.command()
@click.argument("source")
@click.option(
    "--label-field", default="label", show_default=True, help="Label in samples' .json members."
)
@click.option("--classes", help="Address of a text file of class names, one per line.")
@click.option(
    "--error-budget",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0,
    show_default=True,
    help="Share of the samples that may be malformed and are left out.",
)
@click.option("--threads", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@click.option("--verify", is_flag=True, help="Compare the shards with the index that is there.")
def index(
    source: str,
    label_field: str,
    classes: str | None,
    error_budget: float,
    threads: int,
    overwrite: bool,
    verify: bool,
) -> None:
    """Make the index of WebDataset tars that exist already.

    SOURCE is a prefix that holds .tar objects, a brace pattern (s3://bucket/set/x-{000..099}.tar)
    or an index in webdataset's wids format. A sample is a .jpg, .jpeg, .png or .webp with a .cls
    (class number or name) or a .json. The index and a sidecar per shard are written beside the
    shards; a folder has one index, for all of its shards. Every shard is read once; what is
    malformed is reported with its byte, and more than the budget allows ends with 65 and no index.
    Interrupted, it goes on where it was.
    """
    from worker.data.index import parse_address, read_index, require_no_index
    from worker.data.indexing import find_tars, index_tars, read_classes
    from worker.data.verify import verify_shards

    if verify and overwrite:
        raise click.UsageError("--verify compares and writes nothing; leave --overwrite out")
    if verify:
        address = parse_address(source)
        known = read_index(address)
        total = sum(shard.bytes for shard in known.shards)
        with _progress(total, "verifying") as bar:
            lines = verify_shards(address.store, known, threads, bar.update)
        if lines:
            raise DataError("\n  ".join([f"{count(len(lines), 'bad shard')}:", *lines]))
        click.echo(f"{address.store.uri}: {count(len(known.shards), 'shard')}, all as indexed")
        return
    names = read_classes(classes) if classes else None
    tars = find_tars(source)
    if not overwrite:
        require_no_index(tars.store, "index all of a folder's shards together")
    with _progress(sum(tar.size for tar in tars.tars), "indexing") as bar:
        made, empty, lines = index_tars(tars, names, label_field, error_budget, threads, bar.update)
    for line in lines:
        click.echo(f"left out: {line}", err=True)
    click.echo(
        f"{tars.store.uri}: {count(made.samples, 'image')} of {len(made.classes)} classes "
        f"in {count(len(made.shards), 'shard')}"
    )
    if empty:
        click.echo(f"classes without any image: {', '.join(empty[:20])}", err=True)


@main.command()
@click.argument("run")
def audit(run: str) -> None:
    """Prove from the ledger of RUN that each epoch held each sample exactly once.

    RUN is the output of a job whose manifest says `record: {samples: true}`. Exit code 65 if a
    sample was lost or repeated; those left out as bad within the job's budget are listed.
    """
    from worker.checkpoint.commit import list_commits
    from worker.data.index import parse_address, read_index
    from worker.manifest import load_manifest
    from worker.store import open_store
    from worker.train.audit import (
        audit_epochs,
        describe_audit,
        read_ledger,
        require_same_data,
        surviving_rows,
    )

    store = open_store(run)
    manifest = load_manifest(f"{store.uri}manifest.json")
    index = read_index(parse_address(manifest.data.train))
    rows = surviving_rows(read_ledger(store))
    require_same_data(store, index)
    commits = list_commits(store)
    done = commits[0].step if commits else 0
    audits = audit_epochs(rows, index.samples, manifest.train.batch_size, done)
    click.echo("\n".join(describe_audit(audits, index)))
    faults = sum(audit.faults for audit in audits)
    if faults:
        raise DataError(f"{store.uri}: {faults} samples lost or repeated")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the manifest."""
    from worker.manifest import Manifest

    click.echo(json.dumps(Manifest.model_json_schema(), indent=1))


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep the pictures in.")
def demo(keep: Path | None) -> None:
    """Run the whole job on an embedded S3: pack, plan, train, stop, resume, audit.

    Needs `pip install worker[demo]`, no network and no GPU; takes under two minutes on 2 cores.
    """
    try:
        from worker.demo import run_demo
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the demo needs {error.name}; pip install 'worker[demo]'"
        ) from None
    run_demo(keep)
