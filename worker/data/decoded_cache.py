"""A cache of decoded images on scratch disk, so that each is decoded only once."""

import importlib.metadata
import queue
import struct
import threading

import numpy as np
import torch
import xxhash
from torch import Tensor

from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import Ids
from worker.data.reader import Reader
from worker.data.scratch import Scratch

_HEADER = struct.Struct("<QIIq")  # digest of all that follows, height, width, label
_DIGEST_BYTES = 8
_SMALLEST = 64 << 10  # bytes of an image; below that, a file costs more than decoding
_WAITING = 32 << 20  # bytes that may wait to be written; beyond that, images are not kept
_DECODERS = " ".join(importlib.metadata.version(name) for name in ("simplejpeg", "pillow"))
_FORMAT = 1

_local = threading.local()


class _Bytes:
    """A bounded count of bytes waiting to be written, across all data sets of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self, count: int) -> bool:
        """Add to the count and return true; if that would exceed the bound, only return false."""
        with self._lock:
            fits = self._count + count <= _WAITING
            self._count += count if fits else 0
            return fits


_bytes_waiting = _Bytes()


class DecodedImages:
    """A lossless cache of a data set's decoded images, as far as scratch has space.

    Each image is stored in its own file with a digest; an altered one is decoded again.

    Args:
        scratch: Where to keep the images.
        reader: The reader, which identifies the samples.
        spec: How the images are decoded.
    """

    def __init__(self, scratch: Scratch, reader: Reader, spec: ImageSpec) -> None:
        self._scratch = scratch
        self._reader = reader
        # Other versions of the decoders, or other settings, may yield other pixels.
        self._kind = f"decoded {_FORMAT} {_DECODERS} {spec}"
        self._largest = _HEADER.size + 3 * spec.max_pixels
        self._waiting: queue.Queue[tuple[str, bytearray]] = queue.Queue()
        threading.Thread(target=self._write, name="decoded", daemon=True).start()

    def missing(self, ids: Ids) -> Ids:
        """Return the samples whose images are not in the cache."""
        kept = [self._scratch.has_spare(self._name(number)) for number in ids.tolist()]
        missing: Ids = ids[~np.array(kept, dtype=bool)]
        return missing

    def get(self, sample_id: int) -> tuple[Tensor, int] | None:
        """Return a sample's image, uint8 [3, H, W], channels last, and its label, if cached.

        The tensor may be overwritten by this thread's next call.
        """
        buffer: bytearray = getattr(_local, "buffer", bytearray())
        name = self._name(sample_id)
        # The first read usually suffices, as the buffer has grown to the largest image so far. The
        # bound keeps a foreign file from claiming an arbitrary amount of memory.
        size = self._scratch.read_spare(name, buffer)
        if len(buffer) < size <= self._largest:
            buffer = _local.buffer = bytearray(size)
            size = self._scratch.read_spare(name, buffer)
        if not _HEADER.size <= size <= len(buffer):
            return None
        digest, height, width, label = _HEADER.unpack_from(buffer)
        data = memoryview(buffer)[_DIGEST_BYTES:size]
        whole = size == _HEADER.size + height * width * 3
        if not whole or xxhash.xxh3_64_intdigest(data) != digest:
            return None
        pixels = np.frombuffer(buffer, np.uint8, height * width * 3, _HEADER.size)
        image = torch.from_numpy(pixels.reshape(height, width, 3)).permute(2, 0, 1)
        return image, label

    def put(self, sample_id: int, image: Tensor, label: int) -> None:
        """Cache an image, unless it is small, space is short, or too many bytes await writing.

        Args:
            sample_id: The sample.
            image: uint8 [3, H, W].
            label: The class.
        """
        size = _HEADER.size + image.numel()
        if size < _SMALLEST or not self._scratch.may_take(size) or not _bytes_waiting.add(size):
            return
        _, height, width = image.shape
        data = bytearray(size)
        _HEADER.pack_into(data, 0, 0, height, width, label)
        pixels = np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(height, width, 3)
        pixels[:] = image.permute(1, 2, 0).numpy()
        digest = xxhash.xxh3_64_intdigest(memoryview(data)[_DIGEST_BYTES:])
        data[:_DIGEST_BYTES] = digest.to_bytes(_DIGEST_BYTES, "little")
        self._waiting.put((self._name(sample_id), data))

    def _write(self) -> None:
        while True:
            name, data = self._waiting.get()
            self._scratch.put_spare(name, data)
            _bytes_waiting.add(-len(data))
            self._waiting.task_done()

    def _name(self, sample_id: int) -> str:
        return f"{self._kind} {self._reader.identity(sample_id)}"
