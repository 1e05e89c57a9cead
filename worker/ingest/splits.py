"""Assignment of samples to splits, a pure function of key or group: no sample ever moves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from worker.data.epoch_plan import keyed_hash
from worker.errors import ConfigurationError

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
_USUAL_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "validate"), VAL),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
_DRAW = 7
"""Makes the draw of a split independent of that of a sample's place, which uses the same key."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Division of the samples that the source assigns to no split, or to `train`."""

    val: float = 0.0
    """Share of the samples that go to `val`."""
    test: float = 0.0
    """Share of the samples that go to `test`."""
    group_by: str | None = None
    """Regular expression on the key; keys with the same first group, or else the same whole match,
    stay in one split. If it names a column of the source, the column is used instead."""
    seed: int = 0
    """Seed of the division."""
    resplit: bool = False
    """Whether to divide anew what the source has divided."""

    def __post_init__(self) -> None:
        if self.val + self.test >= 1:
            raise ConfigurationError(
                f"--val {self.val:g} and --test {self.test:g} leave nothing to train on; "
                "lower them so that their sum is less than 1"
            )
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise ConfigurationError(
                f"--group-by {self.group_by!r}: neither a column nor a regular expression ({error})"
            ) from None


def split_named(name: str) -> str | None:
    """Return `train`, `val` or `test` for a usual name, in upper or lower case; else None."""
    return _USUAL_NAMES.get(name.strip().lower())


def splits_of(units: Sequence[str], options: SplitOptions) -> list[str]:
    """Return the split of each key or group, to which all of its samples go.

    It depends on nothing else, so samples that are added later do not move others. Since every key
    or group is drawn independently, each class is divided in roughly the requested proportions.
    """
    hashes = np.fromiter(map(hash_text, units), np.uint64, len(units))
    drawn = (keyed_hash(options.seed, _DRAW, hashes) >> np.uint64(11)) / 2**53
    bounds = np.array([options.val, options.val + options.test])
    names = (VAL, TEST, TRAIN)
    return [names[index] for index in np.searchsorted(bounds, drawn, side="right")]


def group_of(key: str, given: str, options: SplitOptions) -> str:
    """Return what must stay in one split: the given group, the pattern's match, or the key.

    Raises:
        ConfigurationError: If the pattern does not match the key.
    """
    if given:
        return given
    if options.group_by is None:
        return key
    match = re.search(options.group_by, key)
    if not match:
        raise ConfigurationError(
            f"--group-by {options.group_by!r}: does not match {key!r}; the pattern must match "
            "every key (its first group, or else the whole match, is kept together)"
        )
    return (match[1] or "") if match.groups() else match[0]


def hash_text(text: str) -> int:
    """Return a 64-bit hash of a text that is the same on every machine."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


def require_no_conflict(present: Mapping[str, int], options: SplitOptions) -> None:
    """Raise `ConfigurationError` if a split would be drawn that the source already has.

    Args:
        present: Number of images by the split that the source assigns them to.
        options: How to divide the samples.
    """
    for share, name in ((options.val, VAL), (options.test, TEST)):
        if share and present.get(name):
            raise ConfigurationError(
                f"--{name}: the source already has {present[name]} images in {name}; "
                f"leave --{name} out"
            )
