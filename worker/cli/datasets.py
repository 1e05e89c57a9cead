"""Commands that make data sets."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.group import main, progress_bar
from worker.errors import DataError
from worker.logs import count

if TYPE_CHECKING:  # they take seconds to import
    from worker.data.image_folder import Split
    from worker.data.index import Index

_MIB = 1 << 20
_BUDGET = 0.01


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("dest")
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=64,
    show_default=True,
    help="Approximate size of a shard, in MiB of images.",
)
@click.option("--seed", default=0, show_default=True, help="Decides the order of the images.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Default: the number of cores."
)
@click.option(
    "--bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about files that cannot be decoded.",
)
@click.option(
    "--error-budget",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=None,
    help="Share of a split's files that --bad skip may leave out (at least one file, unless it is "
    "0). Default: 0.01.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="Images with more pixels count as bad; see data.max_pixels.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing data set at DEST.")
@click.option(
    "--create-bucket", is_flag=True, help="Create the bucket of DEST if it does not exist."
)
def pack(
    *,
    folder: Path,
    dest: str,
    shard_size: float,
    seed: int,
    threads: int | None,
    bad: str,
    error_budget: float | None,
    max_pixels: int,
    overwrite: bool,
    create_bucket: bool,
) -> None:
    """Pack the image FOLDER into WebDataset shards and an index at DEST.

    FOLDER holds one folder of images per class, or such trees in train/, val/ and test/ (or other
    usual names of these splits, in upper or lower case), which become DEST/train/, DEST/val/ and
    DEST/test/.
    Links are followed; whatever is not packed is counted by kind. Every image is decoded first, and
    all those that cannot be decoded are listed with the reason. The same files and seed always give
    the same shards.
    """
    from worker.data.image_folder import find_splits
    from worker.data.index import require_no_index
    from worker.data.pack_images import find_bad, without_bad, write_split
    from worker.store import open_store
    from worker.store.buckets import create_bucket as create

    if error_budget is not None and bad == "fail":
        raise click.UsageError("--error-budget says how much --bad skip may leave out; give both")
    splits = find_splits(folder)
    if create_bucket:
        create(dest)
    stores = [open_store(f"{dest.rstrip('/')}/{split.name}") for split in splits]
    if not overwrite:
        for store in stores:
            require_no_index(store, "choose another place")
    threads = threads or len(os.sched_getaffinity(0))
    with progress_bar(sum(len(split.files) for split in splits), "decoding") as bar:
        found = [find_bad(split, threads, max_pixels, lambda: bar.update(1)) for split in splits]
    budget = _BUDGET if error_budget is None else error_budget
    splits = without_bad(splits, found, budget if bad == "skip" else None)
    for file, reason in ((f, reason) for part in found for f, reason in part.items()):
        click.echo(f"left out: {file.path}: {reason}", err=True)
    # The training split comes first, and its depth then applies to the other splits as well.
    depth = None
    for split, store in zip(splits, stores, strict=True):
        with progress_bar(len(split.files), f"packing {split.name or 'images'}") as bar:
            index = write_split(
                split,
                store,
                int(shard_size * _MIB),
                seed=seed,
                threads=threads,
                advance=lambda: bar.update(1),
                depth=depth,
            )
        depth = depth or index.depth
        _tell(split, index, store.uri)


def _tell(split: "Split", index: "Index", uri: str) -> None:
    """Say what was packed, and what was not."""
    if index.depth:
        click.echo(f"16-bit images are assumed to use only {index.depth} bits", err=True)
    click.echo(
        f"{uri}: {count(index.samples, 'image')} of {len(index.classes)} classes "
        f"in {count(len(index.shards), 'shard')}"
    )
    for kind, number in sorted(split.passed_over.items()):
        click.echo(f"left out: {count(number, kind)}", err=True)
    if any(kind.startswith(".") and kind.endswith(" image") for kind in split.passed_over):
        click.echo("convert those images to JPEG, PNG or WebP to have them packed", err=True)
    if split.nested:
        click.echo(f"in subfolders of a class folder: {count(split.nested, 'image')}")


@main.command()
@click.argument("source")
@click.option(
    "--label-field",
    default="label",
    show_default=True,
    help="Field that holds the label in the samples' .json members.",
)
@click.option("--classes", help="Address of a text file of class names, one per line.")
@click.option(
    "--error-budget",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0,
    show_default=True,
    help="Share of the samples that may be malformed; those samples are left out.",
)
@click.option("--threads", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--decode",
    is_flag=True,
    help="Decode every image; one that cannot be decoded counts as malformed.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="With --decode, images with more pixels count as malformed; see data.max_pixels.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing index.")
@click.option("--verify", is_flag=True, help="Compare the shards with the existing index.")
def index(
    *,
    source: str,
    label_field: str,
    classes: str | None,
    error_budget: float,
    threads: int,
    decode: bool,
    max_pixels: int,
    overwrite: bool,
    verify: bool,
) -> None:
    """Make an index of existing WebDataset tars.

    SOURCE is a prefix that holds .tar objects, a brace pattern (s3://bucket/set/x-{000..099}.tar)
    or an index in webdataset's wids format. A sample is a .jpg, .jpeg, .png or .webp with a .cls
    (class number or name) or a .json. The index and a sidecar per shard are written beside the
    shards; a folder has one index, for all of its shards. Every shard is read once; malformed
    samples are reported with their byte offsets, and if there are more than the budget allows, the
    command exits with 65 and writes no index. After an interruption, the same command resumes
    where it left off.
    """
    from worker.data.class_names import read_classes
    from worker.data.index import parse_address, read_index, require_no_index
    from worker.data.index_tars import index_tars
    from worker.data.tar_source import find_tars
    from worker.data.verify_shards import verify_shards

    if verify and overwrite:
        raise click.UsageError("--verify only compares and does not write; leave --overwrite out")
    if verify:
        address = parse_address(source)
        known = read_index(address)
        total = sum(shard.bytes for shard in known.shards)
        with progress_bar(total, "verifying") as bar:
            lines = verify_shards(address.store, known, threads, bar.update)
        if lines:
            raise DataError("\n  ".join([f"{count(len(lines), 'bad shard')}:", *lines]))
        click.echo(f"{address.store.uri}: {count(len(known.shards), 'shard')}, all as indexed")
        return
    names = read_classes(classes) if classes else None
    tars = find_tars(source)
    if not overwrite:
        require_no_index(tars.store, "index all of a folder's shards together")
    with progress_bar(sum(tar.size for tar in tars.tars), "indexing") as bar:
        made = index_tars(
            tars,
            names,
            label_field,
            error_budget=error_budget,
            threads=threads,
            max_pixels=max_pixels if decode else None,
            advance=bar.update,
        )
    for line in made.left_out:
        click.echo(f"left out: {line}", err=True)
    for kind, number in sorted(made.passed_over.items()):
        click.echo(f"skipped, not part of any sample: {count(number, kind)}", err=True)
    click.echo(
        f"{tars.store.uri}: {count(made.index.samples, 'image')} of {len(made.index.classes)} "
        f"classes in {count(len(made.index.shards), 'shard')}"
    )
    if made.index.depth:
        click.echo(f"16-bit images are assumed to use only {made.index.depth} bits", err=True)
    if made.empty:
        click.echo(f"classes without any image: {', '.join(made.empty[:20])}", err=True)
