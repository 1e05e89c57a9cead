"""The sample table beside the index: key, group and label of every sample, in one object.

How often a sample is seen follows from these (`worker.data.multiplicity`), and reading them costs
one request, whatever the number of shards.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import numpy.typing as npt
import xxhash

from worker.array_files import load_array
from worker.data.index import Index, Shard
from worker.data.sidecar import decode_sidecar
from worker.errors import DataError, InfrastructureError
from worker.store import ObjectMissing, Store

TABLE_DTYPE = np.dtype([("key", "<u8"), ("group", "<u8"), ("label", "<i4")])
SampleTable = npt.NDArray[np.void]
"""A row per sample, by sample id: hashes of its key and its group, and its class number."""

_THREADS = 16


def table_name(digest: str) -> str:
    """Return the name of the table with a digest, so that one in use is never overwritten."""
    return f"samples.{digest}.npy"


def write_table(store: Store, shards: Sequence[Shard]) -> str:
    """Gather the table from the sidecars, which are thereby read back, and write it.

    Returns:
        The digest of the table, for the index.

    Raises:
        InfrastructureError: If a sidecar or the table does not read back as written.
    """

    def rows(shard: Shard) -> SampleTable:
        try:
            sidecar = decode_sidecar(store.get(shard.sidecar), shard, None)
        except ObjectMissing as error:
            raise InfrastructureError(f"{error}; try again") from None
        except ValueError as error:
            raise InfrastructureError(f"{store.uri}{shard.sidecar}: {error}; try again") from None
        table = np.empty(len(sidecar), TABLE_DTYPE)
        for name in TABLE_DTYPE.names or ():
            table[name] = sidecar[name]
        return table

    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(rows, shards))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([np.empty(0, TABLE_DTYPE), *tables]), allow_pickle=False)
    data = buffer.getvalue()
    digest = xxhash.xxh3_64_hexdigest(data)
    store.put(table_name(digest), data)
    if store.get(table_name(digest)) != data:
        where = f"{store.uri}{table_name(digest)}"
        raise InfrastructureError(f"{where}: does not read back as written; try again")
    return digest


def read_table(store: Store, index: Index) -> SampleTable:
    """Return the table of the shards in the index, [samples].

    Raises `DataError` if there is no table, or if it is not the one that was indexed.
    """
    whole = index.whole  # the table covers all shards, even if a brace pattern names only some
    name = table_name(whole.table or "")
    if whole.table is None:
        raise DataError(f"{store.uri}: has no table of its samples; index again")
    try:
        data = store.get(name)
        if xxhash.xxh3_64_hexdigest(data) != whole.table:
            raise ValueError("it is not the table that the index describes")
        table = cast(SampleTable, load_array(data))
        if table.dtype != TABLE_DTYPE or table.shape != (whole.samples,):
            raise ValueError("it does not have a row for each sample")
        labels = table["label"]
        if (labels < 0).any() or (labels >= len(whole.classes)).any():
            raise ValueError(f"it has labels outside the {len(whole.classes)} classes")
    except ObjectMissing as error:
        raise DataError(f"{error}; index again") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{store.uri}{name}: {error}; index again") from None
    if whole is index:
        return table
    ids = {shard.name: number for number, shard in enumerate(whole.shards)}
    places = [ids[shard.name] for shard in index.shards]
    parts = [table[whole.starts[place] : whole.ends[place]] for place in places]
    return np.concatenate(parts)
