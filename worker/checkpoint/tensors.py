"""Tensors as a safetensors file that is never in memory as a whole.

The format is https://huggingface.co/docs/safetensors: eight bytes of header length, a JSON header,
the data. The library writes only what it holds at once, twice the size of a checkpoint.
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


@dataclass(frozen=True)
class Stream:
    """An object that is written piece by piece: its size in bytes, and the pieces, ever anew."""

    size: int
    pieces: Callable[[], Iterator[Piece]]


def stream_bytes(data: bytes) -> Stream:
    """What is in memory already."""
    return Stream(len(data), lambda: iter((data,)))


def stream_tensors(tensors: Mapping[str, Tensor]) -> Stream:
    """The safetensors file of these tensors, each made contiguous when its turn comes."""
    # Widest types first, so that all of them are aligned.
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
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text

    def pieces() -> Iterator[Piece]:
        yield head
        for name in order:
            flat = tensors[name].detach().contiguous().cpu().reshape(-1)
            yield flat.view(torch.uint8).numpy().data

    return Stream(len(head) + end, pieces)
