"""Contents of an image folder: splits, classes, images, and a count of everything else.

Nothing is skipped without being counted, and an ambiguous layout is rejected.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from worker.data.image_formats import (
    IMAGE_SUFFIXES,
    OTHER_IMAGES,
    compressed_among,
    is_image_name,
)
from worker.errors import ConfigurationError
from worker.ingest.file_tree import Entry, FileTree
from worker.ingest.splits import split_named
from worker.logs import count
from worker.text import read_name

_SYSTEM = frozenset(
    ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")
)
"""Folders that systems leave behind, in lower case."""
_METADATA = re.compile(r"__[^/]*__/")  # webdataset skips the contents of such folders


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image to pack."""

    path: PurePath
    """Path of the file."""
    key: str
    """Key of its sample in the tar."""
    label: int
    """Index of its class."""
    bytes: int
    """Size of the file in bytes."""
    version: str = ""
    """Changes whenever the file does."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A data set to write."""

    name: str
    """`train`, `val` or `test`; empty for a folder without splits."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    files: tuple[ImageFile, ...]
    """The images, in order."""
    passed_over: Counter[str]
    """Number of entries that are not packed, by kind."""
    nested: int
    """The number of images in subfolders of the class folders."""


@dataclass
class _Listing:
    """The images below a folder, and a count of everything else by kind."""

    images: list[PurePath] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_splits(tree: FileTree) -> list[Split]:
    """Return the data sets of an image folder: its splits, or a single tree of class folders.

    Splits are recognized by their usual names, in upper or lower case. Links are followed. Labels
    follow the sorted class names of the training split.

    Raises:
        ConfigurationError: If there are no images, a class is missing from the training split, or
            the folders are ambiguous.
    """
    folder, found = tree.root, _Listing()
    children = _folders(tree, folder, found)
    splits = _named_splits(tree, folder, children)
    if not splits:
        _require_folders_apart(tree, folder, children)
        split = _scan(tree, "", children, _class_names(children), found)
        return [require_every_class(folder, split)]
    _require_nothing_beside(tree, children, splits, found)
    parts = {name: _Listing() for name in splits}
    classes = {name: _folders(tree, path, parts[name]) for name, path in splits.items()}
    names = _class_names(classes["train"])
    for name, folders in classes.items():
        unknown = set(_class_names(folders)) - set(names)
        if unknown:
            raise ConfigurationError(
                f"{splits[name]}: class {min(unknown)!r} is not in {splits['train']}; "
                f"add or remove it"
            )
    # Entries beside the splits belong to none of them; the training split reports them.
    parts["train"].passed_over += found.passed_over
    scanned = [_scan(tree, name, classes[name], names, parts[name]) for name in splits]
    require_every_class(splits["train"], scanned[0])
    return scanned


def _named_splits(
    tree: FileTree, folder: PurePath, children: list[PurePath]
) -> dict[str, PurePath]:
    """Return the folders that are named like splits and hold class folders, `train` first."""
    splits: dict[str, PurePath] = {}
    for child in children:
        name = split_named(child.name)
        # A folder named "test" that holds images but no folders may be a class of that name.
        if not name or not _folders(tree, child, _Listing(), must=False):
            continue
        if name in splits:
            raise ConfigurationError(
                f"{folder}: {splits[name].name} and {child.name} are both {name} splits; "
                f"merge them or remove one"
            )
        splits[name] = child
    if splits and "train" not in splits:
        found = ", ".join(path.name for path in splits.values())
        raise ConfigurationError(f"{folder}: holds {found} but no train split; add one")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _require_nothing_beside(
    tree: FileTree,
    children: list[PurePath],
    splits: dict[str, PurePath],
    found: _Listing,
) -> None:
    """Raise `ConfigurationError` if a folder not named like a split holds images."""
    for child in children:
        if child in splits.values():
            continue
        inside = _walk(tree, child)
        if inside.images and split_named(child.name):
            found.passed_over["unlabeled image"] += len(inside.images)
        elif inside.images:
            raise ConfigurationError(
                f"{child}: holds {count(len(inside.images), 'image')} but is not a split "
                f"like {', '.join(path.name for path in splits.values())}; move it elsewhere, "
                f"or, if the splits are really classes, rename them"
            )
        found.passed_over += inside.passed_over


def _require_folders_apart(tree: FileTree, folder: PurePath, children: list[PurePath]) -> None:
    """Raise `ConfigurationError` if the only folder holds several folders: it is not a class."""
    if len(children) != 1:
        return
    inner = _folders(tree, children[0], _Listing(), must=False)
    if len(inner) > 1:
        raise ConfigurationError(
            f"{folder}: holds only the folder {children[0].name!r}, which contains "
            f"{', '.join(path.name for path in inner[:4])}; pass {children[0]} instead"
        )


def require_every_class(folder: PurePath, split: Split) -> Split:
    """Raise `ConfigurationError` if a class has no images: the model could not learn it."""
    present = {file.label for file in split.files}
    for label, name in enumerate(split.classes):
        if label not in present:
            others = ", ".join(
                count(number, kind) for kind, number in sorted(split.passed_over.items())
            )
            more = f" (left out, there or in other folders: {others})" if others else ""
            add = "convert or add some" if "image" in others else "add some"
            raise ConfigurationError(
                f"{folder / name}: holds no images ({', '.join(IMAGE_SUFFIXES)}){more}; "
                f"{add}, or remove the folder"
            )
    return split


def _class_names(folders: list[PurePath]) -> tuple[str, ...]:
    """Return the sorted class names; raise `ConfigurationError` if two folders share one."""
    names: dict[str, PurePath] = {}
    for folder in folders:
        name = _class_name(folder)
        if name in names:
            raise ConfigurationError(
                f"{folder}: is the same class, {name!r}, as {names[name].name!r} beside it, "
                f"once names are stripped and normalized to NFC; rename one or merge them"
            )
        names[name] = folder
    return tuple(sorted(names))


def _class_name(folder: PurePath) -> str:
    try:
        name = read_name(folder.name)
    except ValueError as error:
        shown = os.fsencode(folder.name)
        raise ConfigurationError(
            f"{folder.parent}: the folder named {shown!r} {error}; rename it"
        ) from None
    if not name:
        raise ConfigurationError(f"{folder.parent}: a folder has a blank name; rename it")
    return name


def _scan(
    tree: FileTree,
    name: str,
    folders: list[PurePath],
    classes: tuple[str, ...],
    found: _Listing,
) -> Split:
    """Collect the images of a split; `found` already holds its loose files."""
    by_name = {_class_name(folder): folder for folder in folders}
    files: list[ImageFile] = []
    keys: set[str] = set()
    passed_over, nested = found.passed_over, 0
    passed_over["unlabeled image"] += len(found.images)
    for label, class_name in enumerate(classes):
        folder = by_name.get(class_name)
        if folder is None:
            continue
        inside = _walk(tree, folder)
        passed_over += inside.passed_over
        for path in inside.images:
            relative = path.relative_to(folder.parent)
            nested += len(relative.parts) > 2
            key = _key(relative, keys)
            keys.add(key)
            size, version = tree.stat(path)
            files.append(ImageFile(path=path, key=key, label=label, bytes=size, version=version))
    if not files:
        where = folders[0].parent if folders else name
        raise ConfigurationError(f"{where}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    # Unary plus drops the kinds with a count of zero.
    return Split(
        name=name, classes=classes, files=tuple(files), passed_over=+passed_over, nested=nested
    )


def _key(relative: PurePath, taken: set[str]) -> str:
    """Return an image's key in its tar: its path without dots, at which readers would split it."""
    # Bytes of a file name that are not UTF-8 become escapes, so that every key is valid text.
    text = os.fsencode(relative.with_suffix("")).decode(errors="backslashreplace")
    key = text.replace(".", "_")
    # Prefixed, since readers would otherwise skip the image.
    if _METADATA.match(key):
        key = f"class{key}"
    if key in taken:  # a.jpg beside a.png
        key += f"_{relative.suffix[1:]}"
    while key in taken:
        key += f"_{len(taken)}"
    return key


def _folders(
    tree: FileTree, folder: PurePath, found: _Listing, *, must: bool = True
) -> list[PurePath]:
    """Return the visible folders directly below a folder; record other entries in `found`."""
    folders = []
    for entry in tree.entries(folder):
        if _is_open(entry):
            folders.append(entry.path)
        else:
            _take(entry, found)
    archives = "" if folders else compressed_among(e.name for e in tree.entries(folder))
    if must and archives:
        raise ConfigurationError(f"{folder}: holds no class folders, but {archives}")
    if must and not folders:
        raise ConfigurationError(f"{folder}: holds no class folders; it needs one folder per class")
    return folders


def _walk(tree: FileTree, folder: PurePath) -> _Listing:
    """Return all images below a folder, in order; links are followed, except in a cycle."""
    found = _Listing()
    pending: list[tuple[PurePath, frozenset[object]]] = [(folder, frozenset())]
    while pending:
        folder, above = pending.pop()
        here = tree.identity(folder)
        # Compared only with the folders above it: two links to one folder are both packed, and only
        # a cycle is cut.
        if here in above:
            found.passed_over["cyclic link"] += 1
            continue
        for entry in tree.entries(folder):
            if _is_open(entry):
                pending.append((entry.path, above | {here}))
            else:
                _take(entry, found)
    found.images.sort()
    return found


def _is_open(entry: Entry) -> bool:
    """Return whether an entry is a folder to look into."""
    hidden = entry.name.startswith(".") or entry.name.lower() in _SYSTEM
    return entry.is_folder and not hidden


def _take(entry: Entry, found: _Listing) -> None:
    """Record an entry in `found`: an image in its list, anything else in its counts."""
    path = entry.path
    if entry.name.lower() in _SYSTEM:
        found.passed_over["system folder"] += 1
    elif entry.name.startswith("."):
        found.passed_over["hidden folder" if entry.is_folder else "hidden file"] += 1
    elif not entry.is_file:
        found.passed_over["broken link" if entry.is_link else "special file"] += 1
    elif not is_image_name(entry.name):
        suffix = path.suffix.lower()
        kind = "image" if suffix.removeprefix(".") in OTHER_IMAGES else "file"
        found.passed_over[f"{suffix or 'suffixless'} {kind}"] += 1
    else:
        found.images.append(path)
