"""What a store holds, and data sets as they are read."""

from worker.data.index import Index, parse_address, read_index
from worker.data.read_cache import Cache
from worker.data.reader import SampleReader
from worker.store import Store


def keys(store: Store, prefix: str = "") -> list[str]:
    """The object names of a store that start with a prefix."""
    return [info.key for info in store.list(prefix)]


def unfinish(store: Store) -> None:
    """Take back that a job is done, as if it had never published its result."""
    for key in keys(store):
        if key == "done.json" or key.startswith("publications/"):
            store.delete(key)


def contents(store: Store) -> dict[str, bytes]:
    """All objects of a store."""
    return {key: store.get(key) for key in keys(store)}


def open_index(uri: str) -> Index:
    """The index of a data set."""
    return read_index(parse_address(uri))


def open_reader(uri: str) -> SampleReader:
    """A reader of a data set with a cache of its own."""
    address = parse_address(uri)
    return SampleReader(address.store, read_index(address), cache=Cache(64 << 20))


def labels_of(uri: str) -> list[int]:
    """The labels of a data set, by sample id."""
    reader = open_reader(uri)
    return [reader.read(number).label for number in range(open_index(uri).samples)]
