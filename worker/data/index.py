"""What lies beside the shards: one `index.json` per data set and one sidecar per shard.

`index.json` holds, per shard, name, size, number of samples and sha256, so that a plan needs no
look into any tar. The sidecar `<shard>.samples.npy` holds, per sample, where its tar members lie
and the xxh3-64 digest of those bytes; it is read only when the shard is.
"""

import hashlib
import io

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import ConfigurationError, DataError
from worker.store import ObjectMissing, Store

INDEX_NAME = "index.json"
SIDECAR_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("digest", "<u8")])
Sidecar = npt.NDArray[np.void]


class Shard(BaseModel):
    """One tar: object name, size in bytes, samples, sha256, and its sidecar's xxh3-64."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    bytes: int
    samples: int
    sha256: str
    sidecar_digest: str


class Index(BaseModel):
    """A data set: class names, in label order, and its shards, in sample-id order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int = 1
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples of each shard, shape [shards]."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def digest(self) -> str:
        """Identity of the data set; a resumed job must see the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def sidecar_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.samples.npy"


def read_index(store: Store) -> Index:
    """The index at a data set's root.

    Raises `ConfigurationError` where it is missing, malformed or holds no sample.
    """
    try:
        index = Index.model_validate_json(store.get(INDEX_NAME))
    except ObjectMissing:
        raise ConfigurationError(
            f"{store.uri}{INDEX_NAME}: no such object; `worker pack` makes shards and index"
        ) from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"]))
        raise ConfigurationError(
            f"{store.uri}{INDEX_NAME}: {where}: {detail['msg']}; pack the data again"
        ) from None
    if not index.samples:
        raise ConfigurationError(f"{store.uri}{INDEX_NAME}: lists no samples; pack the data again")
    return index


def encode_sidecar(rows: list[tuple[int, int, int]]) -> bytes:
    """The sidecar of (offset, length, digest) rows, as bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, dtype=SIDECAR_DTYPE), allow_pickle=False)
    return buffer.getvalue()


def read_sidecar(store: Store, shard: Shard) -> Sidecar:
    """The sidecar of one shard, shape [samples]; raises `DataError` where it was altered."""
    name = sidecar_name(shard.name)
    try:
        data = store.get(name)
    except ObjectMissing as error:
        raise DataError(f"{error}; the index names it: pack the data again") from None
    if xxhash.xxh3_64_hexdigest(data) != shard.sidecar_digest:
        raise DataError(f"{store.uri}{name}: not the sidecar that the index describes")
    sidecar: Sidecar = np.load(io.BytesIO(data), allow_pickle=False)
    return sidecar
