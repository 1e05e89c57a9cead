"""The labels of a data set, without its images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from worker.data.index import Index, Shard
from worker.data.sidecar import decode_sidecar
from worker.errors import DataError
from worker.store import ObjectMissing, Store

Labels = Callable[[], npt.NDArray[np.int32]]

_THREADS = 16


def read_labels(store: Store, index: Index) -> npt.NDArray[np.int32]:
    """Return the class number of every sample, by id, at the cost of a small request per shard.

    Raises `DataError` if a sidecar is missing or does not match the index.
    """

    def read(shard: Shard) -> npt.NDArray[np.int32]:
        try:
            data = store.get(shard.sidecar)
            sidecar = decode_sidecar(data, shard, len(index.classes))
        except (ObjectMissing, ValueError) as error:
            raise DataError(f"{store.uri}{shard.sidecar}: {error}; index again") from None
        labels: npt.NDArray[np.int32] = sidecar["label"]
        return labels

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate(list(pool.map(read, index.shards)))
