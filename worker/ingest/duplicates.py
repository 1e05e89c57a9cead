"""Copies of an image: exact ones by the digest of their pixels, near ones by perceptual hash."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4
"""Bits in which the pHashes of near duplicates may differ, of 64."""
_PARTS = MAX_DISTANCE + 1
_MAX_BUCKET = 2000
"""Larger buckets hold plain images, such as blank scans; only neighbors are compared there."""


class Copies(NamedTuple):
    """Images with the same pixels, as indices of rows, in order."""

    rows: tuple[int, ...]
    across: bool
    """Whether they lie in more than one split."""
    labels: int
    """The number of different labels that they have; more than one is a contradiction."""


def find_copies(
    digests: Sequence[int], splits: Sequence[str], labels: Sequence[str]
) -> list[Copies]:
    """Return the groups of images with the same pixels.

    Args:
        digests: The digest of each image.
        splits: The split of each image.
        labels: The label of each image.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    return [
        Copies(
            rows=tuple(rows),
            across=len({splits[row] for row in rows}) > 1,
            labels=len({labels[row] for row in rows}),
        )
        for rows in groups.values()
        if len(rows) > 1
    ]


def near_pairs(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the pairs of images in different splits whose perceptual hashes nearly agree.

    Hashes that differ in at most k bits agree in at least one of k + 1 parts, so only images with
    an equal part are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
    crawling", 2007).

    Args:
        hashes: The 64-bit hash of each image, [images].
        splits: The number of each image's split, [images].

    Returns:
        Pairs of indices, int64 [pairs, 2], in order.
    """
    found: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, _PARTS + 1).astype(np.int64)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, part))
        starts = np.flatnonzero(np.r_[True, np.diff(part[order]) != 0, True])
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if stop - start > 1:
                found.update(_pairs_in(order[start:stop], hashes, splits))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def _pairs_in(
    bucket: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    splits: npt.NDArray[np.int64],
) -> list[tuple[int, int]]:
    if len(bucket) > _MAX_BUCKET:
        # The bucket is sorted by hash, so neighbors stand for all images that share a hash.
        left, right = bucket[:-1], bucket[1:]
    else:
        i, j = np.triu_indices(len(bucket), 1)
        left, right = bucket[i], bucket[j]
    distance = np.bitwise_count(hashes[left] ^ hashes[right])
    close = (distance <= MAX_DISTANCE) & (splits[left] != splits[right])
    pairs = np.sort(np.stack([left[close], right[close]], axis=1), axis=1)
    return [(int(a), int(b)) for a, b in pairs]
