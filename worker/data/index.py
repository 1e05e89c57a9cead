"""What lies beside the shards: one `index.json` per data set and one sidecar per shard.

`index.json` holds, per shard, name, size, number of samples and sha256, so that a plan needs no
look into any tar. The sidecar `<shard>.<digest>.samples.npy` holds, per sample, where its tar
members and its image lie, the xxh3-64 digest of those bytes, and the label; it is read only when
the shard is.
"""

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash
from braceexpand import braceexpand
from pydantic import BaseModel, ConfigDict, ValidationError

from worker.data.shard import Row, Scan
from worker.errors import ConfigurationError
from worker.store import ObjectMissing, Store, open_store

INDEX_NAME = "index.json"
_MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
SIDECAR_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("digest", "<u8"),
        ("image_offset", "<u4"),
        ("image_length", "<u4"),
        ("label", "<i4"),
    ]
)
Sidecar = npt.NDArray[np.void]


class Shard(BaseModel):
    """One tar: object name, size in bytes, samples, sha256, and its sidecar's xxh3-64."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    bytes: int
    samples: int
    sha256: str
    sidecar_digest: str

    @property
    def sidecar(self) -> str:
        """Name of its sidecar; with the digest, so that one that is needed is never replaced."""
        return f"{self.name.removesuffix('.tar')}.{self.sidecar_digest}.samples.npy"


class Index(BaseModel):
    """A data set: class names, in label order, and its shards, in sample-id order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[2] = 2
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

    @property
    def identity(self) -> str:
        """The digest in short, as attempts and messages have it."""
        return f"index {self.digest[:12]}"


@dataclass(frozen=True)
class Address:
    """Where a data set is: the root that holds its index, and the shards that a pattern names."""

    store: Store
    names: tuple[str, ...] | None
    """None for all shards of the index."""


def parse_address(uri: str) -> Address:
    """A data set's address: a prefix, or a brace pattern of tars such as `x/a-{000..099}.tar`.

    Raises `ConfigurationError` for a pattern that is none.
    """
    if not uri.endswith(".tar"):
        return Address(open_store(uri), None)
    size = math.prod(abs(int(b) - int(a)) + 1 for a, b in _RANGE.findall(uri))
    if size > _MOST_SHARDS:
        raise ConfigurationError(f"{uri}: names {size} shards; at most {_MOST_SHARDS} are possible")
    try:
        expanded = list(braceexpand(uri))
    except ValueError:
        raise ConfigurationError(f"{uri}: a brace is not closed") from None
    root = uri[: uri.rfind("/", 0, uri.find("{") if "{" in uri else None) + 1] or "./"
    names = tuple(dict.fromkeys(name.removeprefix(root) for name in expanded))
    return Address(open_store(root), names)


def read_index(address: Address) -> Index:
    """The index at a data set's root, of the shards that the address names.

    Raises `ConfigurationError` where it is missing, malformed, holds no sample or not all shards.
    """
    uri = f"{address.store.uri}{INDEX_NAME}"
    try:
        index = Index.model_validate_json(address.store.get(INDEX_NAME))
    except ObjectMissing:
        raise ConfigurationError(
            f"{uri}: no such object; `worker pack` makes shards and index, "
            "`worker index` an index of tars that are there"
        ) from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"]))
        raise ConfigurationError(f"{uri}: {where}: {detail['msg']}; pack or index again") from None
    if address.names is not None:
        known = {shard.name: shard for shard in index.shards}
        missing = [name for name in address.names if name not in known]
        if missing:
            raise ConfigurationError(
                f"{uri}: lists no {missing[0]}; correct the pattern or index again"
            )
        index = index.model_copy(update={"shards": tuple(known[name] for name in address.names)})
    if not index.samples:
        raise ConfigurationError(f"{uri}: lists no samples; pack or index again")
    return index


def require_no_index(store: Store, remedy: str) -> None:
    """Raise `ConfigurationError` where a data set is there already."""
    try:
        store.get(INDEX_NAME)
    except ObjectMissing:
        return
    raise ConfigurationError(f"{store.uri}: holds a data set already; {remedy} or give --overwrite")


def write_sidecar(store: Store, name: str, scan: Scan, sound: Sequence[tuple[Row, int]]) -> Shard:
    """Write the sidecar of shard `name`, of rows and class numbers; returns its index entry."""
    buffer = io.BytesIO()
    table = [(*row[:-1], label) for row, label in sound]
    np.save(buffer, np.array(table, dtype=SIDECAR_DTYPE), allow_pickle=False)
    data = buffer.getvalue()
    shard = Shard(
        name=name,
        bytes=scan.bytes,
        samples=len(sound),
        sha256=scan.sha256,
        sidecar_digest=xxhash.xxh3_64_hexdigest(data),
    )
    store.put(shard.sidecar, data)
    return shard


def decode_sidecar(data: bytes, shard: Shard) -> Sidecar | None:
    """The sidecar of one shard, shape [samples], or None where it is not the one indexed."""
    if xxhash.xxh3_64_hexdigest(data) != shard.sidecar_digest:
        return None
    sidecar: Sidecar = np.load(io.BytesIO(data), allow_pickle=False)
    return sidecar
