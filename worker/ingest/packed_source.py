"""A packed set as a source: to be sharded, divided, scaled down or thinned out anew."""

import functools
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import xxhash

from worker.data.image_formats import MAX_IMAGE_BYTES
from worker.data.index import Address, Index, read_index
from worker.data.reader import BadSample, require_image_size
from worker.data.sample_keys import key_in
from worker.data.sidecar import decode_sidecar
from worker.data.tar_sample import GROUP_SUFFIX
from worker.errors import ConfigurationError, DataError
from worker.ingest.object_file import ObjectFile
from worker.ingest.source import Item, Source, Unit
from worker.store import ObjectMissing, Store

_READ = 16 << 20
_HEAD_BYTES = 4096


class PackedSource(Source):
    """Data sets made by `worker pack` or `worker index`, one per split.

    Args:
        stores: The data set of each split, by its name, which is empty if there is only one.
    """

    def __init__(self, stores: dict[str, Store]) -> None:
        self._sets: list[tuple[str, Store, Index, int]] = []
        classes: tuple[str, ...] = ()
        for split, store in stores.items():
            index = read_index(Address(store, None))
            if classes and index.classes != classes:
                raise ConfigurationError(
                    f"{store.uri}: has different classes from {self._sets[0][1].uri}; "
                    "pack it by itself"
                )
            classes = index.classes
            self._sets += [(split, store, index, n) for n in range(len(index.shards))]
        self.classes = classes
        self.passed_over = Counter()
        names = [name for name in stores if name]
        self.description = f"packed set with {', '.join(names)}" if names else "packed set"
        self.units = tuple(
            Unit(
                f"{store.uri}{index.shards[n].name}",
                index.shards[n].sha256,
                index.shards[n].samples,
            )
            for _, store, index, n in self._sets
        )

    def items(self, unit: int) -> Iterator[Item]:
        """Yield the images of a shard, each verified against the digest in its sidecar."""
        split, store, index, number = self._sets[unit]
        shard = index.shards[number]
        try:
            sidecar = decode_sidecar(store.get(shard.sidecar), shard, len(index.classes))
        except (ObjectMissing, ValueError) as error:
            raise DataError(f"{store.uri}{shard.sidecar}: {error}; index the set again") from None
        data, first = b"", 0
        for row in sidecar:
            start, stop = int(row["offset"]), int(row["offset"]) + int(row["length"])
            if stop - start > MAX_IMAGE_BYTES:
                item = _large(
                    io.BufferedReader(ObjectFile(store, shard.name, start, stop), _READ), row
                )
                key = item.key or f"{shard.name}-{start}"
                yield replace(item, key=key, label=index.classes[int(row["label"])], split=split)
                continue
            if stop > first + len(data):
                data, first = store.get(shard.name, start, max(stop, start + _READ)), start
            sample = data[start - first : stop - first]
            sound = xxhash.xxh3_64_intdigest(sample) == row["digest"]
            key = key_in(sample[:_HEAD_BYTES]) or f"{shard.name}-{start}"
            image = sample[int(row["image_offset"]) :][: int(row["image_length"])]
            yield Item(
                key=key,
                label=index.classes[int(row["label"])],
                split=split,
                group=_group_in(io.BytesIO(sample)) if row["group"] != row["key"] else "",
                load=functools.partial(_give, image, len(image), sound=sound),
            )


def _large(sample: BinaryIO, row: Any) -> Item:
    """Return the image of a sample that is too large for memory, such as one beside a video.

    Args:
        sample: The sample's part of the shard.
        row: Its row in the sidecar.
    """
    key = key_in(sample.read(_HEAD_BYTES)) or ""
    sample.seek(0)
    digest = xxhash.xxh3_64()
    while piece := sample.read(_READ):
        digest.update(piece)
    image, size = b"", int(row["image_length"])
    if size <= MAX_IMAGE_BYTES:
        sample.seek(int(row["image_offset"]))
        image = sample.read(size)
    sample.seek(0)
    return Item(
        key=key,
        label=None,
        group=_group_in(sample) if row["group"] != row["key"] else "",
        load=functools.partial(_give, image, size, sound=digest.intdigest() == row["digest"]),
    )


def _group_in(sample: BinaryIO) -> str:
    """Return the group that a sample's tar members state, so that a set packed anew keeps it."""
    with tarfile.open(fileobj=sample) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file and member.name.endswith(f".{GROUP_SUFFIX}"):
                return file.read().decode(errors="surrogateescape")
    return ""


def _give(image: bytes, size: int, *, sound: bool) -> bytes:
    require_image_size(size)
    if not sound:
        raise BadSample("altered", "its bytes differ from those that were indexed")
    return image
