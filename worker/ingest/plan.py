"""The plan of a data set: which images, in which split, shard and order. A pure function."""

import functools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from worker.data.epoch_plan import keyed_hash
from worker.errors import ConfigurationError
from worker.ingest.duplicates import Copies, find_copies, near_pairs
from worker.ingest.plan_checks import (
    require_apart,
    require_budget,
    require_every_class,
    require_splits,
    require_whole_groups,
)
from worker.ingest.planned import PlannedSplit, PlanOptions, SetPlan
from worker.ingest.rows import Row
from worker.ingest.sample_names import unique_keys
from worker.ingest.set_classes import classes_of, with_names
from worker.ingest.splits import (
    SPLITS,
    TRAIN,
    SplitOptions,
    group_of,
    hash_text,
    require_no_conflict,
    splits_of,
)
from worker.logs import count

_MAX_LISTED = 20
_PLACE = 3
"""Makes the draw of a sample's place independent of the draw of its split."""
_SHARE = 5
"""Makes the draw of a subset independent of both."""


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
    require_budget(rows, bad, options.bad_share)
    sound = [index for index, row in enumerate(rows) if not row.bad]
    if options.classes:
        rows = with_names(rows, sound, options.classes)
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
    require_apart(rows, copies, splits, options)
    require_whole_groups(rows, splits, options.split)
    classes, labels = classes_of(rows, sound, declared, options)
    names = [name for name in SPLITS if name in set(splits.values())] or [""]
    require_splits(names, options.split)
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
    require_every_class(planned, classes)
    return SetPlan(
        rows=rows,
        labels=labels,
        groups=_groups(rows, sound, options.split),
        keys=unique_keys(rows, planned),
        classes=classes,
        splits=planned,
        bad=tuple(bad),
        copies=tuple(copies),
        near=_near(rows, sound, splits, names),
        warnings=tuple(_warnings(rows, planned, classes, copies)),
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


def _groups(rows: Sequence[Row], sound: list[int], options: SplitOptions) -> dict[int, str]:
    if options.group_by is None and not any(rows[i].group for i in sound):
        return {}
    return {i: group_of(rows[i].key, rows[i].group, options) for i in sound}


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
