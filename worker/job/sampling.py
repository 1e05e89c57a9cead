"""The manifest's settings for how often samples are seen, applied to a job's data sets."""

import logging

import numpy as np
import xxhash

from worker.data.multiplicity import Fold, Multiplicities, Sampling, held_out
from worker.data.sample_table import read_table
from worker.data.tar_sample import hash_key
from worker.errors import ConfigurationError
from worker.job.dataset import Dataset
from worker.logs import count
from worker.manifest import Data
from worker.store import ObjectMissing, read_uri
from worker.text import printable, read_text

log = logging.getLogger(__name__)

_MAX_LIST_BYTES = 1 << 28


def sampling_of(data: Data) -> Sampling:
    """Return the sampling that a manifest asks for; reads the leave-out list.

    Raises `ConfigurationError` if the list cannot be read or names nothing.
    """
    fold = data.fold
    return Sampling(
        balance=data.balance,
        fold=Fold(of=fold.of, hold=fold.hold) if fold else None,
        share=data.share,
        without=_read_keys(data.without) if data.without else {},
    )


def describe_sampling(sampling: Sampling) -> str:
    """Return the settings as text, which is part of a job's identity."""
    parts = []
    if sampling.balance:
        parts.append(f"balance {sampling.balance!r}")
    if sampling.fold:
        parts.append(f"fold {sampling.fold.hold} of {sampling.fold.of} held out")
    if sampling.share < 1:
        parts.append(f"share {sampling.share!r}")
    if sampling.without:
        keys = np.sort(np.fromiter(sampling.without, "<u8", len(sampling.without)))
        digest = xxhash.xxh3_64_hexdigest(keys.tobytes())[:8]
        parts.append(f"without {count(len(keys), 'key')} ({digest})")
    return ", ".join(parts) or "each sample once"


def open_multiplicities(train: Dataset, sampling: Sampling, seed: int) -> Multiplicities | None:
    """Return how often each epoch sees each training sample; None if it is always once.

    Args:
        train: The training set.
        sampling: The settings.
        seed: The job's seed.

    Raises:
        ConfigurationError: If no sample of a class is left.
    """
    if sampling.is_plain:
        return None
    table = read_table(train.store, train.index)
    classes = len(train.index.classes)
    found = Multiplicities(table, classes, sampling, seed)
    present = np.bincount(table["label"], minlength=classes) > 0
    lost = np.flatnonzero(present & (found.class_places == 0))
    if len(lost):
        raise ConfigurationError(
            f"data: no image of the class {train.index.classes[lost[0]]!r} is left to train on "
            f"({describe_sampling(sampling)}); leave fewer out"
        )
    return found


def held_out_of(train: Dataset, sampling: Sampling) -> Dataset:
    """Return the fold that is held out, to validate on.

    Raises `ConfigurationError` if it is empty.
    """
    ids = held_out(read_table(train.store, train.index), sampling)
    if not len(ids):
        raise ConfigurationError(
            f"data.fold: fold {sampling.fold and sampling.fold.hold} has no samples; "
            "use fewer folds"
        )
    return Dataset(train.store, train.index, ids)


def require_known_keys(train: Dataset, sampling: Sampling, address: str) -> None:
    """Warn about keys on the leave-out list that are not in the training set.

    Args:
        train: The training set.
        sampling: The settings.
        address: Where the list was read from, for messages.

    Raises:
        ConfigurationError: If none of the keys is: the list is then not one of sample keys.
    """
    wanted = np.fromiter(sampling.without, np.uint64, len(sampling.without))
    unknown = wanted[~np.isin(wanted, read_table(train.store, train.index)["key"])]
    if not len(unknown):
        return
    first = printable(sampling.without[int(unknown[0])])
    if len(unknown) == len(wanted):
        raise ConfigurationError(
            f"data.without: {address}: {first!r}, for one, is not the key of a sample of "
            f"data.train, nor is any other of its {count(len(wanted), 'line')}; write the part of "
            "a member's name before its first dot"
        )
    log.warning(
        "data.without: %d of %d keys are not in data.train, such as %r",
        len(unknown),
        len(wanted),
        first,
    )


def _read_keys(address: str) -> dict[int, str]:
    try:
        data = read_uri(address, _MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise ValueError(f"is larger than {_MAX_LIST_BYTES >> 20} MiB, so not a list of keys")
        text = read_text(data)
    except ObjectMissing as error:
        raise ConfigurationError(f"data.without: {error}; check the address") from None
    except ValueError as error:
        raise ConfigurationError(f"data.without: {address}: {error}") from None
    # Not `splitlines`, which also splits at characters that keys may contain.
    keys = [line.strip() for line in text.split("\n")]
    found = {hash_key(key): key for key in keys if key}
    if not found:
        raise ConfigurationError(f"data.without: {address}: is empty; write a key on each line")
    return found
