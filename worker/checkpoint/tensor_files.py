"""Reading and writing of tensors in safetensors files, without a second copy in memory.

The format (https://huggingface.co/docs/safetensors) is the header's length in eight bytes, a JSON
header and the data. The safetensors library can write only tensors that are all in memory at once,
and copies everything it reads.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.store import Piece

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorStream:
    """An object that is written in pieces."""

    size: int
    """Its size in bytes."""
    pieces: Callable[[], Iterator[Piece]]
    """Yields the pieces, from the start each time it is called."""


def stream_bytes(data: bytes) -> TensorStream:
    """Return a stream of data that is in memory already."""
    return TensorStream(len(data), lambda: iter((data,)))


def stream_tensors(tensors: Mapping[str, Tensor]) -> TensorStream:
    """Return tensors as a safetensors file; each is made contiguous when its turn comes."""
    # Widest types first, so that all tensors are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format lets the header be padded with spaces; as its length takes up eight bytes, padding
    # it to a multiple of eight aligns the data.
    text += b" " * (-len(text) % 8)
    head = _LENGTH.pack(len(text)) + text

    def pieces() -> Iterator[Piece]:
        yield head
        for name in order:
            # Converted as bytes, since numpy has no bfloat16; `data` exposes the memory without a
            # copy.
            flat = tensors[name].detach().contiguous().cpu().reshape(-1)
            yield flat.view(torch.uint8).numpy().data

    return TensorStream(len(head) + end, pieces)


def read_tensors(data: bytearray) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, each a view of `data`.

    Raises `ValueError` if `data` is not a safetensors file, or holds tensors of an unsupported
    type.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        header = json.loads(data[_LENGTH.size : start])
        header.pop("__metadata__", None)
        return {name: _view(data, start, **entry) for name, entry in header.items()}
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from None


def _view(
    data: bytearray, start: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]
) -> Tensor:
    first, end = data_offsets
    kind = _DTYPES[dtype]
    if not 0 <= first <= end <= len(data) - start:
        raise ValueError(f"offsets {first} to {end} are not within {len(data) - start} bytes")
    # `frombuffer` rejects a count of zero.
    if first == end:
        return torch.empty(shape, dtype=kind)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=end - first, offset=start + first)
    return flat.view(kind).view(shape)
