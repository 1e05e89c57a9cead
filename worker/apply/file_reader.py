"""Random access to loose images by number, for the training loader."""

import functools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.read_cache import Cache
from worker.data.reader import BadSample, Sample
from worker.data.scratch import Scratch
from worker.store import ObjectMissing, Store, open_store

Ids = npt.NDArray[np.int64]

_LOOKAHEAD = 256
_OPEN_STORES = 64


@dataclass(frozen=True)
class _Image:
    data: bytes | None
    """None if there is no such object."""

    @property
    def nbytes(self) -> int:
        return len(self.data or b"") + 256


class FileReader:
    """Images at addresses.

    Args:
        address_of: Returns the address of an image, by its number.
        key_of: Returns its name in the results.
        cache: Keeps images that were read ahead.
    """

    scratch: Scratch | None = None

    def __init__(
        self, address_of: Callable[[int], str], key_of: Callable[[int], str], cache: Cache
    ) -> None:
        self._address_of = address_of
        self._key_of = key_of
        self._cache = cache
        self._open = functools.lru_cache(_OPEN_STORES)(open_store)

    @property
    def lookahead(self) -> int:
        """The number of images worth reading ahead."""
        return _LOOKAHEAD

    def runs(self, sample_ids: Ids) -> Ids:
        """Return the numbers themselves: each image is fetched alone."""
        return sample_ids

    def prefetch(self, sample_ids: Ids) -> None:
        """Start reading these images in the background, in the order given."""
        for number in sample_ids.tolist():
            self._start(number)

    def read(self, sample_id: int) -> Sample:
        """Return an image, with label 0. Raises `BadSample` if there is none."""
        found: _Image = self._start(sample_id).result()
        if found.data is None:
            raise BadSample("missing", "no such object")
        return Sample(memoryview(found.data), 0)

    def identity(self, sample_id: int) -> str:
        """Return the address of an image."""
        return self._address_of(sample_id)

    def name(self, sample_id: int) -> str:
        """Return the address of an image."""
        return self._address_of(sample_id)

    def key(self, sample_id: int) -> str:
        """Return the name of an image in the results."""
        return self._key_of(sample_id)

    def _start(self, number: int) -> Future[Any]:
        return self._cache.get(number, lambda: self._load(number))

    def _load(self, number: int) -> _Image:
        folder, slash, name = self._address_of(number).rpartition("/")
        store: Store = self._open(f"{folder}{slash}" if slash else ".")
        try:
            return _Image(store.get(name))
        except ObjectMissing:
            return _Image(None)
