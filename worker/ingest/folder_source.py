"""An image folder as a source: one folder of images per class, with or without splits."""

import functools
from collections import Counter
from collections.abc import Iterator

from worker.ingest.file_tree import FileTree
from worker.ingest.image_folder import ImageFile, Split, find_splits
from worker.ingest.source import Item, Source, Unit
from worker.logs import count

FILES_PER_UNIT = 1024


class FolderSource(Source):
    """An image folder on a local disk or below a prefix of a store.

    Args:
        tree: The folder.

    Raises:
        ConfigurationError: If its layout is ambiguous, or it holds no images.
    """

    rereads = True

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        splits = find_splits(tree)
        names = [split.name for split in splits if split.name]
        nested = sum(split.nested for split in splits)
        self.description = f"image folder with {', '.join(names)}" if names else "image folder"
        if nested:
            self.description += f"; in subfolders of class folders: {count(nested, 'image')}"
        self.classes = splits[0].classes
        self.passed_over = sum((s.passed_over for s in splits), Counter[str]())
        self._files = [(split, file) for split in splits for file in split.files]
        self.units = tuple(
            _unit_of(self._files[start : start + FILES_PER_UNIT], start)
            for start in range(0, len(self._files), FILES_PER_UNIT)
        )

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a unit, in order."""
        count = self.units[unit].images or 0
        return (self.item(unit, position) for position in range(count))

    def item(self, unit: int, position: int) -> Item:
        """Return an image."""
        split, file = self._files[unit * FILES_PER_UNIT + position]
        return Item(
            key=file.key,
            label=split.classes[file.label],
            split=split.name,
            place=str(file.path),
            load=functools.partial(self._tree.read, file.path),
        )


def _unit_of(files: list[tuple[Split, ImageFile]], start: int) -> Unit:
    # A unit is read again if the listing of its files has changed.
    listing = hash_listing([(str(file.path), file.version) for _, file in files])
    return Unit(name=f"files from {start}", version=listing, images=len(files))


def hash_listing(entries: list[tuple[str, str]]) -> str:
    """Return a digest of names and versions."""
    import hashlib

    digest = hashlib.sha256()
    for name, version in entries:
        digest.update(f"{name}\0{version}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]
