"""Parts of a plan: its options, its splits, and all sets together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.ingest.duplicates import Copies
from worker.ingest.rows import Row
from worker.ingest.splits import SplitOptions


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Settings for turning the images of a source into data sets."""

    split: SplitOptions
    """How they are divided into splits."""
    shard_bytes: int
    """Approximate size of a shard, in bytes."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in label order, if given."""
    keep_classes: tuple[str, ...] = ()
    """The only classes to keep; empty to keep all."""
    share: float = 1.0
    """Share of the images to keep."""
    bad_share: float | None = None
    """Share of the images that may be left out as bad; None to allow none."""
    allow_duplicates: bool = False
    """Whether the same image may be in two splits."""


@dataclass(frozen=True, kw_only=True)
class PlannedSplit:
    """A data set to write."""

    name: str
    """`train`, `val` or `test`; empty if there are no splits."""
    shards: tuple[tuple[int, ...], ...]
    """The rows of each shard, in order, as indices into `SetPlan.rows`."""
    counts: tuple[int, ...]
    """Number of images by class."""
    bytes: int
    """Size of the images in bytes."""


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The plan of all data sets that one source becomes."""

    rows: Sequence[Row]
    """All rows of the source, in its order."""
    labels: dict[int, int]
    """The class number of each row that is packed."""
    groups: dict[int, str]
    """The group of each row that is packed, if the source or `--group-by` states groups."""
    keys: dict[int, str]
    """New keys for rows that cannot keep theirs, which has a dot or occurs earlier in the split."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    splits: tuple[PlannedSplit, ...]
    """The data sets, `train` first."""
    bad: tuple[int, ...]
    """The rows that are left out because they cannot be used."""
    copies: tuple[Copies, ...]
    """Exact duplicates, as indices into `rows`."""
    near: tuple[tuple[int, int], ...]
    """Near duplicates in different splits, as indices into `rows`."""
    warnings: tuple[str, ...] = field(default=())
    """Points that a person should look at; they do not stop the pack."""
