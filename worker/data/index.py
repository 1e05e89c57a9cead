"""The index beside the shards: `index.json` of a data set, and a sidecar per shard.

`index.json` holds the name, size, number of samples and sha256 of each shard, so planning an epoch
opens no tar. The sidecar `<shard>.<digest>.samples.npy` holds, for each sample, the byte ranges of
its tar members and its image, the xxh3-64 digest of the members, and the label; it is read only
when the shard is.
"""

import codecs
import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from braceexpand import braceexpand
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from worker.data.image_formats import compressed_among
from worker.errors import ConfigurationError, InfrastructureError, WorkerError
from worker.layout import INDEX_NAME
from worker.store import ObjectMissing, Store, open_store, require_no_query
from worker.store.json_records import put_json

_MAX_SHARDS = 1_000_000
_MAX_BYTES = 1 << 50  # of a shard
_MAX_SAMPLES = 1 << 40
_USUAL_SPLITS = ("train", "training", "val", "validation", "test")
_MAX_INDEX_BYTES = 1 << 30
_MAX_LISTED = 1000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\..*)?")
_MAX_DIGITS = 18
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z].*")


class Shard(BaseModel):
    """A tar: object name, size in bytes, number of samples, sha256, and its sidecar's xxh3-64."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[^/\x00][^\x00]*$", max_length=1024)]
    bytes: Annotated[int, Field(ge=0, le=_MAX_BYTES)]
    samples: Annotated[int, Field(ge=0, le=_MAX_SAMPLES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sidecar_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

    @property
    def sidecar(self) -> str:
        """Name of the shard's sidecar.

        It includes the digest, so a sidecar still in use is never overwritten.
        """
        return f"{self.name.removesuffix('.tar')}.{self.sidecar_digest}.samples.npy"


class Index(BaseModel):
    """A data set: class names, in label order, and its shards, in sample-id order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[2] = 2
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    shards: tuple[Shard, ...]
    depth: Annotated[int, Field(ge=8, le=16)] | None = None
    """Bits in use in 16-bit images that do not declare the number; None if there are none."""
    table: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """The xxh3-64 of the sample table; None if there is none."""
    _whole: "Index | None" = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Index":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: one is listed twice")
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("shards: one is listed twice")
        return self

    @property
    def whole(self) -> "Index":
        """The index that this one is a part of, or else itself."""
        return self._whole or self

    def part(self, names: Sequence[str]) -> "Index":
        """Return the index of some of the shards, in the order of the names."""
        known = {shard.name: shard for shard in self.shards}
        # Validated copies have caches of their own, unlike those of `model_copy`.
        part = Index(
            classes=self.classes,
            shards=tuple(known[name] for name in names),
            depth=self.depth,
            table=self.table,
        )
        part._whole = self
        return part

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of samples in each shard, shape [shards]."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """The id that follows the last sample of each shard, shape [shards]."""
        return np.cumsum(self.counts)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The id of the first sample of each shard, shape [shards]."""
        return self.ends - self.counts

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return the index of a sample's shard, and the sample's index within it."""
        # side="right": an id equal to an end belongs to the next shard, and empty shards are
        # skipped.
        shard = int(np.searchsorted(self.ends, sample_id, side="right"))
        return shard, sample_id - int(self.starts[shard])

    def locate_all(
        self, sample_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the index of each sample's shard, and the sample's index within it."""
        shards = np.searchsorted(self.ends, sample_ids, side="right")
        return shards, sample_ids - self.starts[shards]

    @property
    def digest(self) -> str:
        """Identity of the data set; it must be the same when a job resumes."""
        # Without the fields that are None, so that a new optional field changes no existing digest,
        # and without the table, which covers shards that a brace pattern leaves out.
        text = self.model_dump_json(exclude_none=True, exclude={"table"})
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """The digest in short form, as used in attempt records and messages."""
        return f"index {self.digest[:12]}"


@dataclass(frozen=True)
class Address:
    """The location of a data set."""

    store: Store
    """The root of the data set, which holds the index."""
    names: tuple[str, ...] | None
    """Names of the shards; None for all shards of the index."""


def parse_address(uri: str) -> Address:
    """Parse a data set's address: a prefix, or a brace pattern such as `x/a-{000..099}.tar`.

    Raises `ConfigurationError` if the pattern is malformed.
    """
    require_no_query(uri)
    if not uri.endswith(".tar"):
        return Address(open_store(uri), None)
    size = _count_names(uri)
    if size > _MAX_SHARDS:
        raise ConfigurationError(f"{uri}: names {size} shards; at most {_MAX_SHARDS} are allowed")
    try:
        expanded = list(braceexpand(uri))
    except ValueError:
        raise ConfigurationError(f"{uri}: a brace is not closed") from None
    # The longest parent without a brace; for a name without any braces, its folder.
    root = uri[: uri.rfind("/", 0, uri.find("{") if "{" in uri else None) + 1] or "./"
    # Overlapping braces may name a shard twice; the order of the pattern is kept.
    names = tuple(dict.fromkeys(name.removeprefix(root) for name in expanded))
    return Address(open_store(root), names)


def _count_names(pattern: str) -> int:
    """Return an upper bound on the number of names in a pattern, without expanding it.

    Raises `ConfigurationError` for braces within braces, which nobody needs for shards.
    """
    rest = _BRACES.sub("", pattern)
    if _BRACES.search(rest):
        raise ConfigurationError(f"{pattern}: has braces within braces; write them out")
    return math.prod(map(_count_in_braces, _BRACES.findall(pattern)))


def _count_in_braces(inner: str) -> int:
    match = _RANGE.fullmatch(inner)
    if match:
        # Treated as too many names without being converted: int() rejects more than 4,300 digits.
        if max(len(match[1]), len(match[2])) > _MAX_DIGITS:
            return 10**_MAX_DIGITS
        # A step, which would only lower the number, is ignored: this serves as an upper bound.
        return abs(int(match[2]) - int(match[1])) + 1
    if _LETTERS.fullmatch(inner):
        return abs(ord(inner[0]) - ord(inner[3])) + 1
    return inner.count(",") + 1


def read_index(address: Address) -> Index:
    """Read the index at a data set's root, limited to the shards that the address names.

    Raises `ConfigurationError` if it is missing or malformed, lists no samples, or does not list
    all of those shards.
    """
    uri = f"{address.store.uri}{INDEX_NAME}"
    try:
        data = address.store.get(INDEX_NAME, 0, _MAX_INDEX_BYTES)
        index = Index.model_validate_json(data.removeprefix(codecs.BOM_UTF8))
    except ObjectMissing:
        near = _sets_nearby(address.store)
        if near:
            raise ConfigurationError(
                f"{uri}: no such object, but there is a data set nearby; use {' or '.join(near)}"
            ) from None
        compressed = compressed_among(_some_names(address.store))
        raise ConfigurationError(
            f"{uri}: no such object{f', but {compressed}' if compressed else ''}; `worker pack` "
            "makes shards and an index, and `worker index` makes an index of existing tars"
        ) from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"]))
        raise ConfigurationError(f"{uri}: {where}: {detail['msg']}; pack or index again") from None
    if address.names is not None:
        known = {shard.name for shard in index.shards}
        missing = [name for name in address.names if name not in known]
        if missing:
            remedy = "correct the pattern or index again"
            if set(missing[0]) & set("*?["):
                remedy = "only brace patterns are supported, as in train-{000..099}.tar"
            raise ConfigurationError(f"{uri}: does not list {missing[0]}; {remedy}")
        index = index.part(address.names)
    if not index.samples:
        raise ConfigurationError(f"{uri}: lists no samples; pack or index again")
    return index


def _some_names(store: Store) -> list[str]:
    """Return names of objects, for a mere hint: an error or a wait would be out of place."""
    try:
        return [info.key for info in itertools.islice(store.list(), _MAX_LISTED)]
    except WorkerError:
        return []


def _sets_nearby(store: Store) -> list[str]:
    """Return the addresses of data sets in splits below a store, and in that above a split."""
    above, _, name = store.uri.rstrip("/").rpartition("/")
    found = []
    with contextlib.suppress(WorkerError):  # a mere hint must cause no other failure
        for uri in (
            *(f"{store.uri}{split}/" for split in _USUAL_SPLITS),
            *((f"{above}/",) if name in _USUAL_SPLITS else ()),
        ):
            with contextlib.suppress(ObjectMissing):
                open_store(uri).get(INDEX_NAME, 0, 1)
                found.append(uri)
    return found


def require_no_index(store: Store, remedy: str) -> None:
    """Raise `ConfigurationError` if the store already holds a data set."""
    try:
        store.get(INDEX_NAME)
    except ObjectMissing:
        return
    raise ConfigurationError(
        f"{store.uri}: already holds a data set; {remedy}, or pass --overwrite, after which jobs "
        "on it cannot resume"
    )


def write_index(store: Store, index: Index) -> None:
    """Write the index, which makes the shards a data set, and read it back."""
    put_json(store, INDEX_NAME, index.model_dump(exclude_none=True))
    if read_index(Address(store, None)) != index:
        raise InfrastructureError(f"{store.uri}{INDEX_NAME}: does not read back as written")
