"""Which images a command line means."""

from pathlib import Path

from worker.data.formats import is_image_name
from worker.errors import ConfigurationError
from worker.store import open_store


def find_images(address: str) -> list[str]:
    """Return the addresses of the images that an address means: all below a folder, or itself.

    A folder is a local one, or a prefix that ends in a slash.

    Raises:
        ConfigurationError: A folder without images, or an address that is no store's.
    """
    local = address.removeprefix("file://") if "://" not in address[len("file://") :] else ""
    if not (address.endswith("/") or Path(local or "?").is_dir()):
        open_store(address.rpartition("/")[0] or ".")
        return [address]
    store = open_store(address)
    names = [info.key for info in store.list() if is_image_name(info.key)]
    if not names:
        raise ConfigurationError(f"{address}: holds no .jpg, .jpeg, .png or .webp")
    base = address if address.endswith("/") else f"{address}/"
    return [f"{base}{name}" for name in names]
