"""Commands that index tars and show data sets."""

import click

from worker.cli.group import main, progress_bar
from worker.errors import DataError
from worker.logs import count


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
    from worker.ranks.stop_signal import StopFlag

    StopFlag(resumes=True).install()
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
        click.echo(f"classes without any images: {', '.join(made.empty[:20])}", err=True)


@main.command()
@click.argument("address")
@click.option("--html", metavar="PATH", help="Write a page with a contact sheet of every class.")
@click.option(
    "--pictures",
    type=click.IntRange(min=1, max=100),
    default=8,
    show_default=True,
    help="Images per class and split on that page.",
)
def inspect(address: str, html: str | None, pictures: int) -> None:
    """Show the data set at ADDRESS: facts, classes, and what was found when it was packed.

    ADDRESS is a data set or a folder of splits. Before you train, look at some
    images of every class with --html.
    """
    from worker.ingest.read_set import read_set
    from worker.report.set_page import describe_set, set_page
    from worker.store import write_uri

    shown = read_set(address, pictures if html else 0)
    click.echo(describe_set(shown))
    if html:
        write_uri(html, set_page(shown).encode())
        click.echo(f"page: {html}")
