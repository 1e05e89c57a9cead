"""The commands that make data sets from any labeled source and show them."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from worker import __version__
from worker.cli.group import main
from worker.cli.pack_progress import PackProgress
from worker.errors import ConfigurationError
from worker.logs import count
from worker.redaction import redacted

if TYPE_CHECKING:  # these modules take seconds to import
    from worker.data.index import Index
    from worker.ingest.open_source import SourceOptions
    from worker.ingest.pack import Pack, PackOptions
    from worker.ingest.planned import SetPlan
    from worker.ingest.rows import UnitRows

_MIB = 1 << 20
_BUDGET = 0.01
_SHARE = click.FloatRange(min=0, max=1, max_open=True)


class _Part(click.ParamType[tuple[int, int]]):
    name = "I/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        index, _, total = str(value).partition("/")
        if index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total):
            return int(index) - 1, int(total)
        raise click.BadParameter(
            f"{value!r} is not I/N with I from 1 to N, such as 2/8", ctx, param
        )


def _names(_: Any, __: Any, values: Sequence[str]) -> tuple[str, ...]:
    names = (name.strip() for value in values for name in value.split(","))
    return tuple(filter(None, names))


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
    callback=_names,
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
    type=_Part(),
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
    opened = open_source(source, _source_options(given))
    click.echo(f"{_shown(source)}: {opened.description}", err=True)
    # Only now, as torch takes seconds to import.
    from worker.ingest.pack import Pack, passed_over, plan_of
    from worker.ingest.pack_text import describe_bad, describe_passed_over, describe_plan

    options = _pack_options(given, near=near)
    if given["create_bucket"] and not given["dry_run"]:
        create_bucket(dest)
    packing = Pack(opened, dest, options, {"source": _shown(source), "options": _told(given)})
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


def _source_options(given: dict[str, Any]) -> "SourceOptions":
    from worker.ingest.open_source import SourceOptions
    from worker.ingest.tar_source import load_map

    return SourceOptions(
        image=given["image"],
        label=given["label"],
        split=given["split"],
        group=given["group_by"],
        root=given["root"],
        mapped=load_map(given["mapped"]) if given["mapped"] else None,
        allow_pipe=given["allow_pipe"],
    )


def _pack_options(given: dict[str, Any], *, near: bool) -> "PackOptions":
    from worker.data.class_names import read_classes
    from worker.ingest.image_check import ImageOptions
    from worker.ingest.pack import PackOptions
    from worker.ingest.planned import PlanOptions
    from worker.ingest.splits import SplitOptions

    budget = _BUDGET if given["error_budget"] is None else given["error_budget"]
    return PackOptions(
        image=ImageOptions(
            max_pixels=given["max_pixels"],
            longest_side=given["longest_side"],
            quality=given["quality"],
            near=near,
        ),
        plan=PlanOptions(
            split=SplitOptions(
                val=given["val"],
                test=given["test"],
                group_by=given["group_by"],
                seed=given["seed"],
                resplit=given["resplit"],
            ),
            shard_bytes=int(given["shard_size"] * _MIB),
            classes=read_classes(given["classes"]) if given["classes"] else None,
            keep_classes=given["keep_classes"],
            share=given["share"],
            bad_share=budget if given["bad"] == "skip" else None,
            allow_duplicates=given["allow_duplicates"],
        ),
        workers=given["workers"] or len(os.sched_getaffinity(0)),
        memory=given["memory"] * _MIB,
        part=given["part"],
        overwrite=given["overwrite"],
    )


def _told(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that say how the source is read."""
    names = ("image", "label", "split", "root", "mapped", "group_by", "classes")
    told = {name: redacted(given[name]) for name in names if given[name]}
    if given["mapped"]:  # another function body is another pack
        file = getattr(sys.modules.get(given["mapped"].partition(":")[0]), "__file__", None)
        told["map_digest"] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    return told


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
