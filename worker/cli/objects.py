"""Commands for single objects."""

from collections.abc import Iterator
from pathlib import Path

import click

from worker.cli.group import main, progress_bar
from worker.errors import ConfigurationError

_PIECE = 1 << 20
_SLASHES = 2  # of s3://BUCKET


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("address")
@click.option("--create-bucket", is_flag=True, help="Create the bucket if it does not exist.")
def put(*, file: Path, address: str, create_bucket: bool) -> None:
    """Upload FILE, such as a manifest or weights, to ADDRESS.

    If ADDRESS ends in a slash, the file keeps its own name. An existing object is replaced.
    """
    from worker.store import open_store
    from worker.store.buckets import create_bucket as create

    if file.is_dir():
        raise ConfigurationError(f"{file}: is a folder; `worker pack` uploads image folders")
    if str(file).startswith("s3:/"):  # a path keeps one slash of an address
        raise ConfigurationError("FILE: is an address; `worker put` uploads a file of this machine")
    if not file.is_file():
        raise ConfigurationError(f"{file}: {'is not a file' if file.exists() else 'no such file'}")
    is_bucket = address.startswith("s3://") and address.count("/") == _SLASHES
    if is_bucket or (not address.endswith("/") and Path(address).is_dir()):
        raise ConfigurationError(
            f"{address}: is a bucket or folder; end it with a slash to put {file.name} there"
        )
    target = f"{address}{file.name}" if address.endswith("/") else address
    folder, _, name = target.rpartition("/")
    store = open_store(f"{folder}/" if "/" in target else ".")
    if create_bucket and create(address):
        click.echo(f"created the bucket of {store.uri}")
    size = file.stat().st_size
    with progress_bar(size, "uploading") as bar:

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as opened:
                while piece := opened.read(_PIECE):
                    bar.update(len(piece))
                    yield piece

        store.put_stream(name, size, pieces())
    click.echo(f"{store.uri}{name}: {size:,} bytes")
