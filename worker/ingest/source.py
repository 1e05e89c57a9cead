"""The interface of a source, as `worker pack` sees it."""

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An image of a source."""

    key: str
    """Key of its sample; the same each time the source is read."""
    label: str | None
    """Name or number of its class; None if the source has none for it."""
    load: Callable[[], bytes]
    """Returns the encoded image; raises `BadSample` if it is missing or damaged."""
    split: str = ""
    """`train`, `val` or `test`; empty if the source does not say."""
    place: str = ""
    """Path of its file in the source, to name it in messages; empty if it has no file."""
    group: str = ""
    """Value of the column that `--group-by` names; empty if there is no such column."""


class Unit(NamedTuple):
    """A part of a source that one process reads in one go: a tar, a row group, some files."""

    name: str
    """Its name in messages."""
    version: str
    """Changes whenever its contents do, as far as the source tells."""
    images: int | None
    """The number of images, if known."""


class Source(ABC):
    """A labeled set of images, in units whose order and contents are always the same."""

    description: str
    """The kind of source, as it was recognized; the first line that the user reads."""
    classes: tuple[str, ...] | None = None
    """Class names in label order, if the source states them."""
    rereads: bool = False
    """Whether single items can be read again cheaply, so that no copy has to be staged."""
    options: frozenset[str] = frozenset()
    """The statements about a source (see `SourceOptions`) that mean something for this kind."""
    passed_over: Counter[str]
    """Number of entries that are not images of the set, by kind."""
    units: tuple[Unit, ...]
    """The parts of the source."""

    @abstractmethod
    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a unit, in order.

        Raises:
            DataError: If the unit as a whole is damaged, such as a tar that was cut short.
        """

    def item(self, unit: int, position: int) -> Item:
        """Return an item of a unit again; only if `rereads` is set."""
        return next(itertools.islice(self.items(unit), position, None))

    def left_over(self, unit: int) -> dict[str, int]:
        """Return the number of non-image entries, by kind, of a unit that has been read."""
        return {}
