"""Folders of files, on a local disk or below a prefix of a store, behind one interface."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol

from worker.data.reader import require_image_size
from worker.errors import ConfigurationError
from worker.store import LocalStore, Store, open_store


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a folder."""

    path: PurePath
    """Its full path."""
    is_folder: bool
    is_file: bool
    is_link: bool = False

    @property
    def name(self) -> str:
        """Return the last component of its path."""
        return self.path.name


class FileTree(Protocol):
    """A tree of folders and files. Errors of the disk or store are raised as `WorkerError`."""

    root: PurePath
    """The topmost folder."""

    def entries(self, folder: PurePath) -> Sequence[Entry]:
        """Return the entries of a folder, by name."""

    def identity(self, folder: PurePath) -> object:
        """Return a value that is the same for a folder and every link to it."""

    def stat(self, path: PurePath) -> tuple[int, str]:
        """Return the size of a file in bytes, and its version."""

    def read(self, path: PurePath) -> bytes:
        """Return the contents of a file; raises `BadSample` if it is too large for an image."""


class StorePath(PurePosixPath):
    """A path below `s3://`, whose second slash pathlib would drop."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


class LocalTree:
    """A folder on a local disk; links are followed."""

    def __init__(self, folder: Path) -> None:
        self.root: PurePath = folder
        if folder.is_file():
            raise ConfigurationError(f"{folder}: is a file; pass its folder, or a table of images")
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: no such folder")

    def entries(self, folder: PurePath) -> Sequence[Entry]:
        try:
            with os.scandir(folder) as found:
                listed = [
                    Entry(Path(e.path), _holds(e.is_dir), _holds(e.is_file), e.is_symlink())
                    for e in found
                ]
        except OSError as error:
            raise ConfigurationError(f"{folder}: {error.strerror}; make it readable") from None
        return sorted(listed, key=lambda entry: entry.name)

    def identity(self, folder: PurePath) -> object:
        status = Path(folder).stat()
        return status.st_dev, status.st_ino

    def stat(self, path: PurePath) -> tuple[int, str]:
        try:
            status = Path(path).stat()
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        return status.st_size, f"{status.st_size} {status.st_mtime_ns}"

    def read(self, path: PurePath) -> bytes:
        require_image_size(self.stat(path)[0])
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None


class StoreTree:
    """The objects below a prefix, in the folders that the slashes of their keys suggest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.root: PurePath = StorePath(store.uri)
        self._files: dict[PurePath, tuple[int, str]] = {}
        self._entries: dict[PurePath, dict[str, Entry]] = {self.root: {}}
        for info in store.list():
            if info.key.startswith("/") or "//" in info.key:
                raise ConfigurationError(
                    f"{store.uri}{info.key}: has an empty folder name in its key; copy it to "
                    "another key"
                )
            if not info.key.endswith("/"):  # a marker that some tools write for a folder
                self._add(self.root / info.key, (info.size, info.version))
        if not self._files:
            raise ConfigurationError(f"{store.uri}: holds nothing; check the address")

    def _add(self, path: PurePath, status: tuple[int, str]) -> None:
        self._files[path] = status
        entry = Entry(path, is_folder=False, is_file=True)
        while path != self.root:
            siblings = self._entries.setdefault(path.parent, {})
            if path.name in siblings:
                if siblings[path.name].is_folder != entry.is_folder:
                    raise ConfigurationError(
                        f"{path}: is an object and a folder at once; rename the object"
                    )
                return
            siblings[path.name] = entry
            path = path.parent
            entry = Entry(path, is_folder=True, is_file=False)

    def entries(self, folder: PurePath) -> Sequence[Entry]:
        found = self._entries.get(folder, {})
        return [found[name] for name in sorted(found)]

    def identity(self, folder: PurePath) -> object:
        return folder

    def stat(self, path: PurePath) -> tuple[int, str]:
        return self._files[path]

    def read(self, path: PurePath) -> bytes:
        require_image_size(self.stat(path)[0])
        return self._store.get(str(path)[len(self._store.uri) :])


def open_tree(uri: str) -> FileTree:
    """Open the folder or prefix that `uri` names."""
    store = open_store(uri)
    return LocalTree(store.root) if isinstance(store, LocalStore) else StoreTree(store)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a link that points to itself
        return False
