"""The progress bar of a pack."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from worker.cli.group import progress_bar

if TYPE_CHECKING:  # takes seconds to import
    from worker.ingest.pack import Pack


class PackProgress:
    """A bar with images and megabytes per second; yields the function that advances it."""

    def __init__(self, packing: "Pack", label: str, total: int | None = None) -> None:
        counts = [unit.images for unit in packing.source.units]
        known = None if None in counts else sum(filter(None, counts))
        self._bar = progress_bar(total or known or 0, label)
        self._began = time.monotonic()
        self._images = self._bytes = 0

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.item_show_func = lambda _: self._speed()
        self._bar.__enter__()
        return self._advance

    def _advance(self, images: int, size: int) -> None:
        self._images += images
        self._bytes += size
        self._bar.update(images)

    def _speed(self) -> str:
        seconds = max(1e-3, time.monotonic() - self._began)
        return f"{self._images / seconds:.0f} images/s, {self._bytes / seconds / 1e6:.1f} MB/s"

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
