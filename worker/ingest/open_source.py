"""Recognition of the kind of a source from its address and contents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from worker.data.image_formats import is_image_name
from worker.errors import ConfigurationError
from worker.ingest.file_tree import Entry, FileTree, open_tree
from worker.ingest.folder_source import FolderSource
from worker.ingest.packed_source import PackedSource
from worker.ingest.parquet_source import ParquetSource
from worker.ingest.source import Item, Source
from worker.ingest.splits import SPLITS, split_named
from worker.ingest.table_rows import TABLES
from worker.ingest.table_source import TableSource
from worker.ingest.tar_source import Map, TarSource
from worker.layout import INDEX_NAME
from worker.store import ObjectInfo, open_store, read_uri

_METADATA = ("metadata.csv", "metadata.jsonl")
_OWN = ("", "file", "s3")
_LOOK_BYTES = 1 << 16
_NO_CLASSES = frozenset(
    (
        *("images", "image", "imgs", "photos", "pictures", "data"),
        *("train", "training", "test", "testing", "val", "validation"),
    )
)
"""Names of folders that are not classes if a table lies beside them."""
_SPECIAL = {
    **{name: f"--{name}" for name in ("image", "label", "split", "root")},
    "mapped": "--map",
}
"""Options of the command line for some kinds of sources only, by statement."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The user's statements about a source."""

    image: str | None = None
    """Column of the image."""
    label: str | None = None
    """Column of the label, or its field in `.json` members."""
    split: str | None = None
    """Column of the split."""
    group: str | None = None
    """Column of the group; ignored if there is no such column."""
    root: str | None = None
    """Address that relative paths in a table start from."""
    mapped: Map | None = None
    """Function that is applied to the samples of tars."""
    allow_pipe: bool = False
    """Whether `pipe:` addresses are opened."""

    @property
    def columns(self) -> dict[str, str | None]:
        """Return the columns that the user names, by option."""
        return {
            "image": self.image,
            "label": self.label,
            "split": self.split,
            "group": self.group,
        }


def open_source(address: str, options: SourceOptions) -> Source:
    """Open the source at an address, whatever its kind.

    Args:
        address: A folder, a prefix, a table, or the address of tars.
        options: The user's statements about it.

    Raises:
        ConfigurationError: If there is nothing at the address, it is ambiguous, or a statement
            makes no sense for this kind of source.
    """
    source = _recognize(address, options)
    for name, option in _SPECIAL.items():
        if getattr(options, name) and name not in source.options:
            raise ConfigurationError(
                f"{option}: means nothing for this source ({source.description}); leave it out"
            )
    return source


def _recognize(address: str, options: SourceOptions) -> Source:
    on_web = address.lower().startswith(("http://", "https://"))
    if on_web and urlsplit(address).path.lower().endswith(TABLES) and "::" not in address:
        return TableSource(address, options.columns, options.root)
    if "::" in address or urlsplit(address).scheme not in _OWN or _is_tars(address):
        return _tars(address, options)
    if address.lower().endswith(".parquet"):
        folder, _, name = address.rpartition("/")
        store = open_store(f"{folder}/" if "/" in address else ".")
        files = [info for info in store.list(name) if info.key == name]
        if not files:
            raise ConfigurationError(f"{address}: no such file")
        return ParquetSource(store, files, options.columns, options.root or folder or ".")
    if address.lower().endswith(TABLES):
        return TableSource(address, options.columns, options.root)
    return _in_folder(address, options)


def _is_tars(address: str) -> bool:
    if address.endswith(".tar") or address.startswith("pipe:"):
        return True
    if not address.endswith(".json"):
        return False
    # Webdataset's own index, or a table.
    return b'"shardlist"' in read_uri(address, _LOOK_BYTES)


def _tars(address: str, options: SourceOptions) -> Source:
    return TarSource(
        address,
        label_field=options.label or "label",
        mapped=options.mapped,
        allow_pipe=options.allow_pipe,
    )


def _in_folder(address: str, options: SourceOptions) -> Source:
    tree = open_tree(address)
    entries = tree.entries(tree.root)
    base = address.rstrip("/")
    folders = [e for e in entries if e.is_folder and split_named(e.name)]
    files = [(entry, tree.entries(entry.path)) for entry in folders]
    packed = _packed(base, entries, files)
    if packed:
        return packed
    names = {entry.name for entry in entries if entry.is_file}
    if any(name.endswith(".tar") for name in names) or any(
        e.name.endswith(".tar") for _, inside in files for e in inside
    ):
        _refuse_images_beside(tree, address, entries)
        return _tars(address, options)
    found = _parquet(base, entries, files, options)
    if found:
        return found
    tables = [(f"{base}/{name}", "") for name in _METADATA if name in names] or [
        (f"{base}/{folder.name}/{e.name}", split_named(folder.name) or "")
        for folder, inside in files
        for e in inside
        if e.name in _METADATA
    ]
    if tables:
        columns, root = options.columns, options.root
        return _joined([TableSource(uri, columns, root, split) for uri, split in tables])
    source = FolderSource(tree)
    _refuse_loose_table(source, address, names)
    return source


_Folders = Sequence[tuple[Entry, Sequence[Entry]]]
"""Folders named like splits, with their entries."""


def _packed(base: str, entries: Sequence[Entry], folders: _Folders) -> Source | None:
    if any(entry.is_file and entry.name == INDEX_NAME for entry in entries):
        return PackedSource({"": open_store(base)})
    stores = {
        split_named(folder.name) or "": open_store(f"{base}/{folder.name}")
        for folder, inside in folders
        if any(entry.name == INDEX_NAME for entry in inside)
    }
    if not stores:
        return None
    return PackedSource({name: stores[name] for name in SPLITS if name in stores})


def _parquet(
    base: str, entries: Sequence[Entry], folders: _Folders, options: SourceOptions
) -> Source | None:
    places = [*entries, *(entry for _, inside in folders for entry in inside)]
    near = any(entry.is_file and entry.name.endswith(".parquet") for entry in places)
    # Hugging Face's sets have their files in data/.
    if not near and not any(entry.is_folder and entry.name == "data" for entry in entries):
        return None
    store = open_store(base)
    files: list[ObjectInfo] = [i for i in store.list() if i.key.endswith(".parquet")]
    return ParquetSource(store, files, options.columns, options.root or base) if files else None


def _refuse_images_beside(tree: FileTree, address: str, entries: Sequence[Entry]) -> None:
    """Raise `ConfigurationError` for tars beside folders of images: either may be meant."""
    for entry in entries:
        if entry.is_folder and any(is_image_name(e.name) for e in tree.entries(entry.path)):
            raise ConfigurationError(
                f"{address}: holds tars, and images in {entry.name}; move the kind that you do "
                "not mean elsewhere"
            )


def _refuse_loose_table(source: FolderSource, address: str, names: set[str]) -> None:
    """Raise `ConfigurationError` if a table lies beside folders that do not look like classes."""
    tables = sorted(name for name in names if name.endswith((".csv", ".tsv", ".jsonl", ".json")))
    classes = {name.lower() for name in source.classes or ()}
    if tables and (len(classes) == 1 or classes <= _NO_CLASSES):
        raise ConfigurationError(
            f"{address}: has a table, {tables[0]}, beside folders that do not look like classes "
            f"({', '.join(sorted(classes))}); pass {address.rstrip('/')}/{tables[0]}, or move it "
            "elsewhere"
        )


class _Joined(Source):
    """Several sources, one after the other."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self.description = "; ".join(source.description for source in sources)
        self.classes = None
        self.rereads = all(source.rereads for source in sources)
        self.options = frozenset.intersection(*(source.options for source in sources))
        self.passed_over = sum((s.passed_over for s in sources), Counter[str]())
        self.units = tuple(unit for s in sources for unit in s.units)
        self._places = [(s, n) for s in sources for n in range(len(s.units))]

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a unit, in order."""
        source, number = self._places[unit]
        return source.items(number)

    def item(self, unit: int, position: int) -> Item:
        """Return an item of a unit again."""
        source, number = self._places[unit]
        return source.item(number, position)


def _joined(sources: list[Source]) -> Source:
    return sources[0] if len(sources) == 1 else _Joined(sources)
