"""The commands that make data sets from any labeled source and show them."""

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from worker import __version__
from worker.cli.group import main
from worker.cli.pack_options import Part, names_in, pack_options, reading_options, source_options
from worker.cli.pack_progress import PackProgress
from worker.errors import ConfigurationError
from worker.logs import count
from worker.redaction import redacted

if TYPE_CHECKING:  # these modules take seconds to import
    from worker.data.index import Index
    from worker.ingest.pack import Pack
    from worker.ingest.planned import SetPlan
    from worker.ingest.rows import UnitRows

_SHARE = click.FloatRange(min=0, max=1, max_open=True)


@main.command()
@click.argument("source")
@click.argument("dest")
@click.option("--dry-run", is_flag=True, help="Print everything, and write nothing.")
@click.option("--val", type=_SHARE, default=0, help="Share of the images to validate with.")
@click.option("--test", type=_SHARE, default=0, help="Share of the images to test with.")
@click.option(
    "--group-by",
    metavar="REGEX|COLUMN",
    help="Keep images together in one split: by a column of the table, or by the first group of a "
    "regular expression on the image's path.",
)
@click.option("--resplit", is_flag=True, help="Ignore the splits of the source.")
@click.option("--image", help="Column of the image's path, address or bytes.")
@click.option("--label", help="Column of the label, or its field in .json members.")
@click.option("--split", help="Column of the split.")
@click.option("--root", help="Address that relative paths in a table start from.")
@click.option("--classes", help="Address of a text file of class names, in label order.")
@click.option(
    "--keep-classes",
    multiple=True,
    callback=names_in,
    help="The only classes to pack, comma-separated or one at a time.",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1,
    help="Share of the images to pack; adding images to the source never drops one.",
)
@click.option(
    "--longest-side",
    type=click.IntRange(min=16),
    help="Scale images with a longer side down to this, in pixels.",
)
@click.option(
    "--quality",
    type=click.IntRange(min=1, max=100),
    default=90,
    show_default=True,
    help="JPEG quality of the images that are scaled down.",
)
@click.option(
    "--map",
    "mapped",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="Applied to each sample of a tar; takes webdataset's dictionary, returns one or None.",
)
@click.option("--allow-pipe", is_flag=True, help="Open pipe: addresses, which run a command.")
@click.option("--allow-duplicates", is_flag=True, help="Accept the same image in two splits.")
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=64,
    show_default=True,
    help="Approximate size of a shard, in MiB of images.",
)
@click.option("--seed", default=0, show_default=True, help="Determines the splits and the order.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Number of processes; default: one per core."
)
@click.option(
    "--memory",
    type=click.IntRange(min=16),
    default=1024,
    show_default=True,
    help="MiB of images that all processes together may hold.",
)
@click.option(
    "--part",
    type=Part(),
    default="1/1",
    help="Pack the I-th of N parts, while other processes pack the rest.",
)
@click.option(
    "--bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about images that cannot be decoded.",
)
@click.option(
    "--error-budget",
    type=_SHARE,
    help="Share of the images that --bad skip may leave out (at least one image, unless it is 0). "
    "Default: 0.01.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="Images with more pixels count as bad; see data.max_pixels.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace existing data sets at DEST; jobs on them can then no longer resume.",
)
@click.option(
    "--create-bucket", is_flag=True, help="Create the bucket of DEST if it does not exist."
)
def pack(source: str, dest: str, **given: Any) -> None:
    """Pack a labeled SOURCE into WebDataset shards and an index at DEST.

    SOURCE is an image folder (local or s3://), a table (.csv, .tsv, .lst, .jsonl, .json, .parquet)
    of paths, addresses or bytes, a WebDataset (a prefix of tars, or a pattern at any address that
    webdataset opens), or a packed set. How it was recognized is printed first. Splits become
    DEST/train/, DEST/val/ and DEST/test/; a source without any becomes DEST/.

    Every image is decoded; those that cannot be are all listed. The same source and options give
    the same bytes on any machine. After an interruption, the same command resumes.
    """
    from worker.ranks.stop_signal import StopFlag

    StopFlag(resumes=True).install()  # in an Indexed Job or an array, too
    from worker.ingest.open_source import open_source
    from worker.store.buckets import create_bucket

    if given["error_budget"] is not None and given["bad"] == "fail":
        raise click.UsageError("--error-budget says how much --bad skip may leave out; give both")
    near = importlib.util.find_spec("imagehash") is not None
    if given["dry_run"]:
        given["part"] = (0, 1)
    _require_apart(source, dest)
    opened = open_source(source, source_options(given))
    click.echo(f"{_shown(source)}: {opened.description}", err=True)
    # Only now, as torch takes seconds to import.
    from worker.ingest.pack import Pack, passed_over, plan_of
    from worker.ingest.pack_text import describe_bad, describe_passed_over, describe_plan

    options = pack_options(given, near=near)
    if given["create_bucket"] and not given["dry_run"]:
        create_bucket(dest)
    packing = Pack(
        opened, dest, options, {"source": _shown(source), "options": reading_options(given)}
    )
    if not given["dry_run"] and _is_done(packing, dest):
        return
    units = _read(packing, dry=given["dry_run"])
    if units is None:
        click.echo(f"{dest}: another part has completed this pack")
        return
    wanted = options.plan
    if given["dry_run"]:  # everything is shown before anything is refused
        wanted = replace(wanted, bad_share=1.0, allow_duplicates=True)
    # Before anything is refused, so that one look at the source does.
    for line in describe_passed_over(passed_over(units, opened)):
        click.echo(line, err=True)
    plan, places = plan_of(units, opened, wanted)
    for line in describe_bad(plan.rows, plan.bad):
        click.echo(line, err=True)
    click.echo(describe_plan(plan, near=near))
    if given["dry_run"]:
        plan_of(units, opened, options.plan)
        click.echo("dry run: nothing was written")
        return
    with PackProgress(packing, "writing", sum(sum(s.counts) for s in plan.splits)) as advance:
        packing.write(plan, places, advance)
    record = _record(packing, plan, units, source=source, given=given, near=near)
    _tell(dest, plan, packing.complete(plan, record, _say))


def _shown(source: str) -> str:
    """Return an address for people; a shell command may hold any secret."""
    return "pipe:[command]" if "pipe:" in source else redacted(source)


def _require_apart(source: str, dest: str) -> None:
    """Refuse to pack into the source: a second start would take the result for part of it."""
    from worker.store import open_store

    if "::" in source or urlsplit(source).scheme not in ("", "file", "s3"):
        return
    there, here = open_store(dest).uri, open_store(source).uri
    if there.startswith(here):
        raise ConfigurationError(f"{dest}: is in {source} itself; choose a place outside it")


def _is_done(packing: "Pack", dest: str) -> bool:
    """Return whether this very pack is complete; refuse to replace another one unasked."""
    if packing.finished():
        click.echo(f"{dest}: this pack is complete; there is nothing to do")
        return True
    packing.require_free()
    return False


def _read(packing: "Pack", *, dry: bool) -> "list[UnitRows] | None":
    """Read the source; return all of its rows, or None if another part has completed the pack."""
    with PackProgress(packing, "reading") as advance:
        units = packing.read(advance, dry=dry)
    return units if dry else packing.wait_for_units(_say)


def _tell(dest: str, plan: "SetPlan", indexes: "list[Index]") -> None:
    """Say what was packed."""
    if indexes[0].depth:
        click.echo(f"16-bit images are assumed to use only {indexes[0].depth} bits", err=True)
    for split, index in zip(plan.splits, indexes, strict=True):
        click.echo(
            f"{dest.rstrip('/')}/{split.name}{'/' if split.name else ''}: "
            f"{count(index.samples, 'image')} of {len(index.classes)} classes "
            f"in {count(len(index.shards), 'shard')}"
        )


def _record(
    packing: "Pack",
    plan: "SetPlan",
    units: "list[UnitRows]",
    *,
    source: str,
    given: dict[str, Any],
    near: bool,
) -> Any:
    from worker.ingest.dataset_record import record_of
    from worker.ingest.pack import passed_over

    elsewhere = ("dry_run", "overwrite", "create_bucket", "workers", "memory", "part")
    context = click.get_current_context()
    told = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if name not in elsewhere
        and context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    return record_of(
        plan,
        pack=packing.identity,
        made_by=__version__,
        source=_shown(source),
        kind=packing.source.description,
        options={k: redacted(v) if isinstance(v, str) else v for k, v in told.items()},
        passed_over=dict(passed_over(units, packing.source)),
        near=near,
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
