"""The images that a command line names."""

import click

from worker.apply.prediction_plan import LISTS
from worker.data.image_formats import IMAGE_SUFFIXES, describe_left_out, is_image_name
from worker.errors import ConfigurationError
from worker.layout import INDEX_NAME
from worker.store import LocalStore, open_store


def find_images(address: str) -> list[str]:
    """Return the addresses of the images that an address stands for.

    These are all images below it if it is a folder, that is, a local folder or a prefix that ends
    in a slash; otherwise the address itself.

    Raises:
        ConfigurationError: The folder has no images, or the address does not belong to a known
            store.
    """
    if address.lower().endswith(LISTS):
        raise ConfigurationError(f"{address}: a list is predicted as a whole set; give --out")
    store = open_store(address)
    is_folder = isinstance(store, LocalStore) and store.root.is_dir()
    if not is_folder and not address.endswith("/"):
        return [address]
    keys = [info.key for info in store.list()]
    names = [key for key in keys if is_image_name(key)]
    for line in describe_left_out(keys):
        click.echo(line, err=True)
    if not names and INDEX_NAME in keys:
        raise ConfigurationError(f"{address}: is a packed set; give --out to predict it")
    if not names and isinstance(store, LocalStore) and not is_folder:
        raise ConfigurationError(f"{address}: no such folder")
    if not names:
        raise ConfigurationError(f"{address}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [f"{address.rstrip('/')}/{name}" for name in names]


def folder_of(address: str) -> str:
    """Return the name of the folder that an image is in; empty if the address has none."""
    return address.rpartition("/")[0].rpartition("/")[2]
