"""Places of the images that a table names: relative paths, or addresses of stores and servers."""

import contextlib
import functools
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import urlsplit

from worker.data.image_formats import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, is_image_name
from worker.data.reader import BadSample, require_image_size
from worker.errors import ConfigurationError
from worker.ingest.file_tree import FileTree, open_tree
from worker.ingest.web import read_web
from worker.store import ObjectMissing, read_uri

_USUAL_FOLDERS = ("", "images", "image", "imgs", "img", "train", "train_images", "data")
_ELSEWHERE = ("gs", "azureml", "abfss", "wasbs", "gcs")
"""Schemes of stores that cannot be read here: their paths are looked for below `--root`."""


class ImagePlaces:
    """Finder of the images that a table names.

    Args:
        root: Address of the folder that relative paths start from, or the prefix of a web server.
        stem: The name of the table without its suffix, after which Kaggle names folders.
    """

    def __init__(self, root: str, stem: str) -> None:
        self._root = root.rstrip("/")
        self.on_web = urlsplit(root).scheme in ("http", "https")
        self._folders = (*_USUAL_FOLDERS, stem)
        self._base = ""

    def settle(self, names: list[str]) -> str:
        """Choose the folder below the root that most of these names are in; return it."""
        relative = [name for name in names if self._is_relative(name)]
        if relative and not self.on_web:
            found = {
                folder: sum(self._find(name, folder) is not None for name in relative)
                for folder in dict.fromkeys(self._folders)
            }
            self._base = max(found, key=lambda folder: found[folder])
        return self._base

    def version(self, name: str) -> str:
        """Return a string that changes whenever the image does, if a cheap check can tell."""
        if self._is_relative(name):
            path = self._find(name, self._base)
            return f"{name} {self._tree.stat(path)[1]}" if path else name
        if name.startswith("/"):
            with contextlib.suppress(OSError):
                status = Path(name).stat()
                return f"{name} {status.st_size} {status.st_mtime_ns}"
        return name

    def read(self, name: str) -> bytes:
        """Return an image.

        Raises:
            BadSample: If there is no such file, or it is too large.
            WorkerError: If it cannot be read.
        """
        if not self._is_relative(name):
            if name.lower().startswith(("http://", "https://")):
                return read_web(name)
            try:
                data = read_uri(name, MAX_IMAGE_BYTES + 1)
            except ObjectMissing:
                raise BadSample("missing", "no such file") from None
            require_image_size(len(data))
            return data
        if self.on_web:
            below = urlsplit(name).path if "://" in name else name
            return read_web(f"{self._root}/{below.lstrip('/')}")
        path = self._find(name, self._base)
        if path is None:
            raise BadSample("missing", f"no such file below {self._tree.root}")
        return self._tree.read(path)

    def _is_relative(self, name: str) -> bool:
        scheme = name.partition("://")[0].lower() if "://" in name else ""
        return not (scheme and scheme not in _ELSEWHERE) and (
            self.on_web or not name.startswith("/")
        )

    @functools.cached_property
    def _tree(self) -> FileTree:
        return open_tree(self._root or "/")

    def _find(self, name: str, folder: str) -> PurePath | None:
        """Return the path of an image, whose name may lack a suffix or begin with a bucket."""
        if "://" in name:
            parts = urlsplit(name)
            whole = PurePosixPath(parts.path.lstrip("/"))
            return next(
                filter(None, (self._at(PurePosixPath(*whole.parts[n:])) for n in range(3))), None
            )
        found = self._at(PurePosixPath(folder, name))
        if found is None and "\\" in name:  # as Windows writes paths
            found = self._at(PurePosixPath(folder, name.replace("\\", "/")))
        return found

    def _at(self, relative: PurePosixPath) -> PurePath | None:
        names = self._listing(str(relative.parent))
        if relative.name in names:
            return names[relative.name]
        if is_image_name(relative.name):
            return None
        for suffix in IMAGE_SUFFIXES:
            for form in (suffix, suffix.upper()):
                if f"{relative.name}.{form}" in names:
                    return names[f"{relative.name}.{form}"]
        return None

    @functools.lru_cache(maxsize=4096)  # noqa: B019 -- lives as long as the command
    def _listing(self, folder: str) -> dict[str, PurePath]:
        """Return the files in a folder below the root, by name."""
        if ".." in folder.split("/"):
            raise ConfigurationError(f"{folder}: an image must not lie outside --root")
        try:
            entries = self._tree.entries(self._tree.root / folder)
        except ConfigurationError:  # no such folder
            return {}
        return {entry.name: entry.path for entry in entries if entry.is_file}
