"""The contents of an image folder: splits, classes and images, and a count of everything else.

Nothing is passed over without being counted, and what could be meant in two ways is refused.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from worker.data.image_formats import IMAGE_SUFFIXES, OTHER_IMAGES, is_image_name
from worker.errors import ConfigurationError
from worker.logs import count
from worker.text import read_name

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
_METADATA = re.compile(r"__[^/]*__/")  # webdataset passes over what lies in such folders


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image to pack."""

    path: Path
    """The file."""
    key: str
    """Its key in the tar."""
    label: int
    """Its class."""
    bytes: int
    """Its size."""


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
    """Counts what is not packed, by kind."""
    nested: int
    """The number of images in folders below those of their classes."""


@dataclass
class _Found:
    """The images below a folder, and a count of everything else by kind."""

    images: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_splits(folder: Path) -> list[Split]:
    """Return the data sets of an image folder: its splits, or one tree, of a folder per class.

    Splits are known by their usual names in any case. Links are followed. Labels follow the sorted
    class names of the training split.

    Raises:
        ConfigurationError: There are no images, classes that only another split has, or folders
            that could be meant in two ways.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such folder")
    found = _Found()
    children = _folders(folder, found)
    splits = _named_splits(folder, children)
    if not splits:
        _require_folders_apart(folder, children)
        return [require_every_class(folder, _scan("", children, _class_names(children), found))]
    _require_nothing_beside(folder, children, splits, found)
    parts = {name: _Found() for name in splits}
    classes = {name: _folders(path, parts[name]) for name, path in splits.items()}
    names = _class_names(classes["train"])
    for name, folders in classes.items():
        unknown = set(_class_names(folders)) - set(names)
        if unknown:
            raise ConfigurationError(
                f"{splits[name]}: class {min(unknown)!r} is not in {splits['train']}"
            )
    parts["train"].passed_over += found.passed_over
    scanned = [_scan(name, classes[name], names, parts[name]) for name in splits]
    require_every_class(splits["train"], scanned[0])
    return scanned


def _named_splits(folder: Path, children: list[Path]) -> dict[str, Path]:
    """Return the folders of classes that are named like splits, `train` first."""
    splits: dict[str, Path] = {}
    for child in children:
        name = _SPLITS.get(child.name.strip().lower())
        if not name or not _folders(child, _Found(), must=False):
            continue
        if name in splits:
            raise ConfigurationError(
                f"{folder}: {splits[name].name} and {child.name} are both a {name} split; "
                "remove or merge one"
            )
        splits[name] = child
    if splits and "train" not in splits:
        found = ", ".join(path.name for path in splits.values())
        raise ConfigurationError(f"{folder}: holds {found} and no train; add it")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _require_nothing_beside(
    folder: Path, children: list[Path], splits: dict[str, Path], found: _Found
) -> None:
    """Raise `ConfigurationError` if images lie beside the splits in a folder of another name."""
    for child in children:
        if child in splits.values():
            continue
        inside = _walk(child)
        if inside.images and child.name.strip().lower() in _SPLITS:
            found.passed_over["image in no class folder"] += len(inside.images)
        elif inside.images:
            raise ConfigurationError(
                f"{child}: holds {count(len(inside.images), 'image')} and is no split like "
                f"{', '.join(path.name for path in splits.values())} beside it; move it away, "
                "or rename the splits if they are classes"
            )
        found.passed_over += inside.passed_over


def _require_folders_apart(folder: Path, children: list[Path]) -> None:
    """Raise `ConfigurationError` if the only folder is no class but holds those of the classes."""
    if len(children) != 1:
        return
    inner = _folders(children[0], _Found(), must=False)
    if len(inner) > 1:
        raise ConfigurationError(
            f"{folder}: holds the folder {children[0].name!r} alone, in which there are "
            f"{', '.join(path.name for path in inner[:4])}; give {children[0]}"
        )


def require_every_class(folder: Path, split: Split) -> Split:
    """Raise `ConfigurationError` for a class without images, an output that nothing trains."""
    present = {file.label for file in split.files}
    for label, name in enumerate(split.classes):
        if label not in present:
            others = ", ".join(
                count(number, kind) for kind, number in sorted(split.passed_over.items())
            )
            more = f" (left out there and elsewhere: {others})" if others else ""
            add = "convert or add some" if "image" in others else "add some"
            raise ConfigurationError(
                f"{folder / name}: holds no images ({', '.join(IMAGE_SUFFIXES)}){more}; "
                f"{add} or remove it"
            )
    return split


def _class_names(folders: list[Path]) -> tuple[str, ...]:
    """Return the names of the classes, sorted; each folder has one of its own."""
    names: dict[str, Path] = {}
    for folder in folders:
        name = _class_name(folder)
        if name in names:
            raise ConfigurationError(
                f"{folder}: is class {name!r}, as {names[name].name!r} beside it is once names are "
                "stripped and in Unicode's NFC; rename or merge one"
            )
        names[name] = folder
    return tuple(sorted(names))


def _class_name(folder: Path) -> str:
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


def _scan(name: str, folders: list[Path], classes: tuple[str, ...], found: _Found) -> Split:
    """Collect the images of a split, whose loose files are in `found` already."""
    by_name = {_class_name(folder): folder for folder in folders}
    files: list[ImageFile] = []
    keys: set[str] = set()
    passed_over, nested = found.passed_over, 0
    passed_over["image in no class folder"] += len(found.images)
    for label, class_name in enumerate(classes):
        folder = by_name.get(class_name)
        if folder is None:
            continue
        inside = _walk(folder)
        passed_over += inside.passed_over
        for path in inside.images:
            relative = path.relative_to(folder.parent)
            nested += len(relative.parts) > 2
            key = _key(relative, keys)
            keys.add(key)
            files.append(ImageFile(path=path, key=key, label=label, bytes=path.stat().st_size))
    if not files:
        where = folders[0].parent if folders else name
        raise ConfigurationError(f"{where}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return Split(
        name=name, classes=classes, files=tuple(files), passed_over=+passed_over, nested=nested
    )


def _key(relative: Path, taken: set[str]) -> str:
    """Return the key of an image in its tar: its path, so that each reader takes it for one key."""
    text = os.fsencode(relative.with_suffix("")).decode(errors="backslashreplace")
    key = text.replace(".", "_")
    if _METADATA.match(key):
        key = f"class{key}"
    if key in taken:  # a.jpg beside a.png
        key += f"_{relative.suffix[1:]}"
    while key in taken:
        key += f"_{len(taken)}"
    return key


def _folders(folder: Path, found: _Found, *, must: bool = True) -> list[Path]:
    """Return the visible folders right below a folder; what else lies there is counted."""
    folders = []
    for entry in _entries(folder):
        if _is_folder(entry) and not entry.name.startswith("."):
            folders.append(Path(entry.path))
        else:
            _take(entry, found)
    if must and not folders:
        raise ConfigurationError(f"{folder}: holds no class folders; it needs one folder per class")
    return folders


def _walk(folder: Path) -> _Found:
    """Return all images below a folder, in order; links are followed, unless in a circle."""
    found = _Found()
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        folder, above = pending.pop()
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            found.passed_over["link to a folder above it"] += 1
            continue
        for entry in _entries(folder):
            if _is_folder(entry) and not entry.name.startswith("."):
                pending.append((Path(entry.path), above | {here}))
            else:
                _take(entry, found)
    found.images.sort()
    return found


def _take(entry: os.DirEntry[str], found: _Found) -> None:
    """Note a file, or a hidden folder."""
    path = Path(entry.path)
    if entry.name.startswith("."):
        found.passed_over["hidden folder" if _is_folder(entry) else "hidden file"] += 1
    elif not _is_file(entry):
        found.passed_over["broken link" if entry.is_symlink() else "special file"] += 1
    elif not is_image_name(entry.name):
        suffix = path.suffix.lower()
        kind = "image" if suffix.removeprefix(".") in OTHER_IMAGES else "file"
        found.passed_over[f"{suffix or 'suffixless'} {kind}"] += 1
    else:
        found.images.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}; make it readable") from None
