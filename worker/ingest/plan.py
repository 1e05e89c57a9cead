"""The plan of a data set: which images, in which split, shard and order. A pure function."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.data.class_names import number_of
from worker.data.epoch_plan import keyed_hash
from worker.data.error_budget import allowed
from worker.errors import ConfigurationError, DataError
from worker.ingest.duplicates import Copies, find_copies, near_pairs
from worker.ingest.rows import Row
from worker.ingest.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    SplitOptions,
    group_of,
    hash_text,
    require_no_conflict,
    splits_of,
)
from worker.logs import count

_MAX_LISTED = 20
_MAX_DIGITS = 10
_UNSAFE = re.compile(r"[.\x00-\x1f\x7f\ud800-\udfff]")
_METADATA = re.compile(r"__[^/]*__(/|$)")
_MAX_KEY_BYTES, _MAX_KEY_CHARACTERS = 200, 40
_PLACE = 3
"""Makes the draw of a sample's place independent of the draw of its split."""
_SHARE = 5
"""Makes the draw of a subset independent of both."""


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


def order_of(keys: Sequence[str], seed: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """Return numbers that sort the keys of a split; the staged chunks are sorted by them, too."""
    hashes = np.fromiter(map(hash_text, keys), np.uint64, len(keys))
    return keyed_hash(seed, _PLACE, hashes)


def make_plan(
    rows: Sequence[Row], declared: tuple[str, ...] | None, options: PlanOptions
) -> SetPlan:
    """Plan the data sets.

    Args:
        rows: The rows of the source, in its order.
        declared: The class names that the source itself states, in label order.
        options: The settings.

    Raises:
        DataError: If too many images are bad, if labels are unknown, or if copies of an image lie
            in different splits.
        ConfigurationError: If a class or a split would be empty, or the options contradict the
            source.
    """
    bad = [index for index, row in enumerate(rows) if row.bad]
    _require_budget(rows, bad, options.bad_share)
    sound = [index for index, row in enumerate(rows) if not row.bad]
    if options.classes:
        rows = _named(rows, sound, options.classes)
    sound = _subset(rows, sound, options)
    if not sound:
        raise ConfigurationError("no image is left; check the source and the options")
    splits = _divide(rows, sound, options.split)
    copies = find_copies(
        [rows[i].digest for i in sound],
        [splits[i] for i in sound],
        [rows[i].label for i in sound],
    )
    copies = [Copies(tuple(sound[n] for n in c.rows), c.across, c.labels) for c in copies]
    _require_apart(rows, copies, splits, options)
    _require_whole_groups(rows, splits, options.split)
    classes, labels = _classes(rows, sound, declared, options)
    names = [name for name in SPLITS if name in set(splits.values())] or [""]
    _require_splits(names, options.split)
    planned = tuple(
        _plan_split(
            name,
            [i for i in sound if splits[i] == name],
            rows=rows,
            labels=labels,
            class_count=len(classes),
            options=options,
        )
        for name in names
    )
    _require_every_class(planned, classes)
    return SetPlan(
        rows=rows,
        labels=labels,
        keys=_unique_keys(rows, planned),
        classes=classes,
        splits=planned,
        bad=tuple(bad),
        copies=tuple(copies),
        near=_near(rows, sound, splits, names),
        warnings=tuple(_warnings(rows, planned, classes, copies)),
    )


def _require_budget(rows: Sequence[Row], bad: list[int], share: float | None) -> None:
    if len(bad) <= allowed(share or 0, len(rows)):
        return
    remedy = "repair or remove them, or pass --bad skip"
    if share is not None:
        remedy = f"more than --error-budget {share:g} allows; repair or remove them"
    lines = [f"{rows[i].key}: {rows[i].bad}" for i in bad]
    raise DataError("\n  ".join([f"{count(len(bad), 'image')} cannot be used; {remedy}:", *lines]))


def _named(rows: Sequence[Row], sound: list[int], classes: tuple[str, ...]) -> list[Row]:
    """Return the rows with class names in place of numbers into the given list."""
    named = list(rows)
    for i in sound:
        label = rows[i].label
        if label not in classes and label.isdecimal() and int(label) < len(classes):
            named[i] = rows[i]._replace(label=classes[int(label)])
    return named


def _require_splits(names: Sequence[str], options: SplitOptions) -> None:
    wanted = {TRAIN: names != [""], VAL: options.val > 0, TEST: options.test > 0}
    for name, is_wanted in wanted.items():
        if is_wanted and name not in names:
            raise ConfigurationError(
                f"no image is in {name}; there are too few images or groups for these shares "
                "(--val, --test, --group-by), or the source has no such split"
            )


def _subset(rows: Sequence[Row], sound: list[int], options: PlanOptions) -> list[int]:
    if options.keep_classes:
        wanted = set(options.keep_classes)
        missing = wanted - {rows[i].label for i in sound}
        if missing:
            raise ConfigurationError(
                f"--keep-classes: the source has no class {min(missing)!r}; correct the name"
            )
        sound = [i for i in sound if rows[i].label in wanted]
    if options.share < 1:
        hashes = np.fromiter((hash_text(rows[i].key) for i in sound), np.uint64, len(sound))
        drawn = (keyed_hash(options.split.seed, _SHARE, hashes) >> np.uint64(11)) / 2**53
        sound = [i for i, draw in zip(sound, drawn, strict=True) if draw < options.share]
    return sound


def _divide(rows: Sequence[Row], sound: list[int], options: SplitOptions) -> dict[int, str]:
    """Return the split of each row: the source's own or, if it is `train` or none, a drawn one."""
    own = {i: "" if options.resplit else rows[i].split for i in sound}
    require_no_conflict(Counter(filter(None, own.values())), options)
    if not options.val and not options.test:
        if any(own.values()):  # rows in no split are for training
            return {i: split or TRAIN for i, split in own.items()}
        return own
    free = [i for i in sound if own[i] in ("", TRAIN)]
    units = [group_of(rows[i].key, rows[i].group, options) for i in free]
    if options.group_by is None and not any(rows[i].group for i in free):
        # Copies of an image follow the first of them, so that none is in two splits.
        first: dict[int, str] = {}
        for i in free:
            first.setdefault(rows[i].digest, rows[i].key)
            first[rows[i].digest] = min(first[rows[i].digest], rows[i].key)
        units = [first[rows[i].digest] for i in free]
    return own | dict(zip(free, splits_of(units, options), strict=True))


def _require_apart(
    rows: Sequence[Row], copies: list[Copies], splits: dict[int, str], options: PlanOptions
) -> None:
    across = [group for group in copies if group.across]
    if not across or options.allow_duplicates:
        return
    lines = [
        " = ".join(f"{splits[i]}: {rows[i].key}" for i in group.rows[:4])
        for group in across[:_MAX_LISTED]
    ]
    more = [f"and {len(across) - _MAX_LISTED} more"] if len(across) > _MAX_LISTED else []
    head = (
        f"{count(len(across), 'image')} in more than one split: a model cannot be judged on "
        "what it was trained on; remove the copies, or pass --allow-duplicates:"
    )
    raise DataError("\n  ".join([head, *lines, *more]))


def _require_whole_groups(
    rows: Sequence[Row], splits: dict[int, str], options: SplitOptions
) -> None:
    """Raise `DataError` if a group is in more than one split, as the source may have put it."""
    if options.group_by is None:
        return
    found: dict[str, str] = {}
    for i, split in splits.items():
        group = group_of(rows[i].key, rows[i].group, options)
        if found.setdefault(group, split) != split:
            raise DataError(
                f"the group {group!r} is in {found[group]} and in {split}; a model cannot be "
                "judged on what it was trained on; move the group, or divide the images anew "
                "(--resplit)"
            )


def _classes(
    rows: Sequence[Row], sound: list[int], declared: tuple[str, ...] | None, options: PlanOptions
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the class names, and the class number of each row."""
    given = options.classes or declared
    present = {rows[i].label for i in sound}
    if given and options.keep_classes:
        given = tuple(name for name in given if name in present)
    classes = given or _names_of(present)
    numbers = {name: number for number, name in enumerate(classes)}
    labels: dict[int, int] = {}
    for i in sound:
        number = number_of(rows[i].label, numbers)
        if number is None:
            raise DataError(
                f"{rows[i].key}: its class {rows[i].label!r} is not among the classes; correct "
                "the label or the list of classes"
            )
        labels[i] = number
    return classes, labels


def _names_of(labels: set[str]) -> tuple[str, ...]:
    """Return the class names that the labels stand for: sorted, and by value if all are numbers."""
    numbers = {label for label in labels if label.isdecimal() and len(label) < _MAX_DIGITS}
    if numbers != labels:
        return tuple(sorted(labels))
    by_value = sorted(labels, key=lambda label: (int(label), label))
    for one, other in itertools.pairwise(by_value):
        if int(one) == int(other):
            raise DataError(
                f"the labels {one!r} and {other!r} are the same number; use one of them"
            )
    return tuple(by_value)


def _plan_split(
    name: str,
    members: list[int],
    *,
    rows: Sequence[Row],
    labels: dict[int, int],
    class_count: int,
    options: PlanOptions,
) -> PlannedSplit:
    """Shuffle a split by its keys, and cut it into shards.

    Because of this shuffle, training needs no buffer large enough to mix the classes.
    """
    places = order_of([rows[i].key for i in members], options.split.seed)
    order = [members[n] for n in np.argsort(places, kind="stable")]
    shards: list[list[int]] = [[]]
    room = options.shard_bytes
    for i in order:
        if shards[-1] and rows[i].bytes > room:
            shards.append([])
            room = options.shard_bytes
        shards[-1].append(i)
        room -= rows[i].bytes
    counts = np.bincount([labels[i] for i in members], minlength=class_count)
    return PlannedSplit(
        name=name,
        shards=tuple(map(tuple, shards)),
        counts=tuple(counts.tolist()),
        bytes=sum(rows[i].bytes for i in members),
    )


def _unique_keys(rows: Sequence[Row], planned: Sequence[PlannedSplit]) -> dict[int, str]:
    """Return new keys for rows whose key contains a dot or occurs earlier in their split.

    Tar readers would split a member's name at the first dot.
    """
    renamed: dict[int, str] = {}
    for split in planned:
        members = sorted(i for shard in split.shards for i in shard)
        taken = {rows[i].key for i in members}
        seen: set[str] = set()
        for i in members:
            key = new = safe_key(rows[i].key)
            number = 1
            while new in seen or (new != rows[i].key and new in taken):
                number += 1
                new = f"{key}-{number}"
            seen.add(new)
            if new != rows[i].key:
                renamed[i] = new
    return renamed


def safe_key(key: str) -> str:
    """Return a key that no tar reader splits or skips: without dots, empty parts and the like."""
    parts = [part for part in _UNSAFE.sub("_", key).split("/") if part]
    text = "/".join(parts) or "image"
    if _METADATA.match(text):  # webdataset skips such names
        text = f"key{text}"
    if len(text.encode(errors="surrogatepass")) > _MAX_KEY_BYTES:
        text = f"{text[:_MAX_KEY_CHARACTERS]}-{hash_text(key):016x}"
    return text


def _require_every_class(planned: Sequence[PlannedSplit], classes: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` if a class has no training images: it could not be learned."""
    for name, number in zip(classes, planned[0].counts, strict=True):
        if not number:
            where = planned[0].name or "the data set"
            raise ConfigurationError(
                f"the class {name!r} has no images in {where}; add some, or leave the class out "
                "(--keep-classes, --classes)"
            )


def _near(
    rows: Sequence[Row], sound: list[int], splits: dict[int, str], names: list[str]
) -> tuple[tuple[int, int], ...]:
    if len(names) < 2 or not any(rows[i].perceptual for i in sound):
        return ()
    hashes = np.array([rows[i].perceptual for i in sound], dtype=np.uint64)
    numbers = np.array([names.index(splits[i]) for i in sound], dtype=np.int64)
    pairs = near_pairs(hashes, numbers)
    found = [(sound[a], sound[b]) for a, b in pairs.tolist()]
    return tuple((a, b) for a, b in found if rows[a].digest != rows[b].digest)


def _warnings(
    rows: Sequence[Row],
    planned: Sequence[PlannedSplit],
    classes: tuple[str, ...],
    copies: Sequence[Copies],
) -> list[str]:
    found = []
    for split in planned[1:]:
        empty = [name for name, n in zip(classes, split.counts, strict=True) if not n]
        if empty:
            found.append(f"{split.name} has no image of {', '.join(empty[:_MAX_LISTED])}")
    torn = [group for group in copies if group.labels > 1]
    if torn:
        one = {rows[i].label: i for i in torn[0].rows}
        first = " = ".join(f"{rows[i].key} ({label})" for label, i in list(one.items())[:2])
        found.append(f"{count(len(torn), 'image')} with more than one label, such as {first}")
    return found


def total_copies(copies: Sequence[Copies]) -> int:
    """Return how many images are copies of another one."""
    return functools.reduce(lambda total, group: total + len(group.rows) - 1, copies, 0)
