"""The second pass of a pack: shards are assembled, written and read back."""

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from worker.data.index import Index
from worker.data.reader import BadSample
from worker.data.shard_scan import scan_shard
from worker.data.sidecar import write_sidecar
from worker.data.tar_sample import GROUP_SUFFIX
from worker.data.verify_shards import verify_shards
from worker.errors import ConfigurationError, DataError, InfrastructureError
from worker.ingest.planned import PlannedSplit, SetPlan
from worker.ingest.rows import Row
from worker.ingest.source import Source
from worker.ingest.staging import Receipt, Staging
from worker.store import Store

Place = tuple[int, int]
"""Where a row comes from: the number of its unit, and its position within the unit."""


OWN_NAME = re.compile(
    r"shard-\d{6}-[0-9a-f]{8}(\.[0-9a-f]{16}\.samples\.npy|\.tar)|samples\.[0-9a-f]{16}\.npy"
)
"""The names of the objects that a pack writes: shards, sidecars and sample tables."""


def shard_name(number: int, sha256: str) -> str:
    """Return the name of a shard.

    It includes part of its digest, so no shard ever replaces one with different contents.
    """
    return f"shard-{number:06d}-{sha256[:8]}.tar"


class Changed(DataError):
    """An image that is no longer what it was in the first pass; names the unit to read again."""

    def __init__(self, text: str, unit: int = -1) -> None:
        super().__init__(text)
        self.unit = unit

    def __reduce__(self) -> tuple[type["Changed"], tuple[str, int]]:
        return Changed, (str(self), self.unit)  # so that it survives pickling in a child process


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writer of shards, from staged chunks or from the source."""

    source: Source
    """The source."""
    staging: Staging
    """The staged chunks; they also record which shards are complete."""
    plan: SetPlan
    """The plan."""
    places: Sequence[Place]
    """The place of each row of the plan."""

    def write(self, split: PlannedSplit, number: int, store: Store) -> int:
        """Write a shard, read it back and record it as complete; return the bytes of its images.

        Args:
            split: The split.
            number: The number of the shard.
            store: Where the split's data set will be.

        Raises:
            DataError: If the source has changed since the first pass.
            InfrastructureError: If the shard does not read back as written.
        """
        members = split.shards[number]
        images = self._images(members)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i in members:
                row = self.plan.rows[i]
                key = self.plan.keys.get(i, row.key)
                _add(tar, f"{key}.cls", str(self.plan.labels[i]).encode())
                if i in self.plan.groups:
                    _add(
                        tar,
                        f"{key}.{GROUP_SUFFIX}",
                        self.plan.groups[i].encode(errors="surrogateescape"),
                    )
                _add(tar, f"{key}.{row.suffix}", images[i])
        data = buffer.getvalue()
        scan = scan_shard(lambda start, stop: data[start:stop], len(data))
        name = shard_name(number, scan.sha256)
        if scan.problems:
            raise ConfigurationError(f"{name}: {scan.problems[0].text}")
        if len(scan.rows) != len(members):
            raise RuntimeError(f"{name}: {len(scan.rows)} of {len(members)} samples read back")
        store.put(name, data)
        shard = write_sidecar(store, name, scan, [(row, int(row.label)) for row in scan.rows])
        index = Index(classes=self.plan.classes, shards=(shard,))
        lines = verify_shards(store, index, 1, lambda _: None)
        if lines:
            raise InfrastructureError(f"does not read back as written: {lines[0]}; pack again")
        receipt = Receipt(shard=shard, highest=scan.highest)
        self.staging.put_receipt(split.name, number, receipt)
        return sum(map(len, images.values()))

    def _images(self, members: Sequence[int]) -> dict[int, bytes]:
        """Return the images of some rows, as they will be stored."""
        found: dict[int, bytes] = {}
        chunks: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i in members:
            row = self.plan.rows[i]
            if row.chunk < 0:
                found[i] = self._read_again(i, row)
            else:
                chunks[self.places[i][0], row.chunk].append(i)
        for (unit, chunk), rows in chunks.items():
            start = min(self.plan.rows[i].offset for i in rows)
            stop = max(self.plan.rows[i].offset + self.plan.rows[i].bytes for i in rows)
            data = self.staging.read_chunk(unit, chunk, start, stop)
            for i in rows:
                at = self.plan.rows[i].offset - start
                found[i] = data[at : at + self.plan.rows[i].bytes]
                if xxhash.xxh3_64_intdigest(found[i]) != self.plan.rows[i].content:
                    where = f"{self.staging.store.uri}: the copy of {self.plan.rows[i].key}"
                    raise InfrastructureError(f"{where} does not read back as staged; pack again")
        return found

    def _read_again(self, i: int, row: Row) -> bytes:
        unit, position = self.places[i]
        changed = Changed(f"{row.key}: changed while it was packed; pack again", unit)
        try:
            data = self.source.item(unit, position).load()
        except (BadSample, ConfigurationError):
            raise changed from None
        if xxhash.xxh3_64_intdigest(data) != row.content:
            raise changed
        return data


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults carry no time and no owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
