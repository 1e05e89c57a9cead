"""A copy of a training state in host memory, where another process can read it."""

import mmap
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.memory import lock_pages
from worker.numbers import ceil_div

Key = Hashable

_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True, kw_only=True)
class Place:
    """The location of a tensor in a `HostCopy`."""

    offset: int
    """The offset of its first byte."""
    dtype: torch.dtype
    """Its data type."""
    shape: torch.Size
    """Its shape."""
    stride: tuple[int, ...]
    """Its strides, in elements."""


def room_for(tensor: Tensor) -> int:
    """Return the number of bytes that a tensor takes up in a `HostCopy`."""
    return ceil_div(tensor.nbytes, _ALIGNMENT) * _ALIGNMENT


class HostCopy:
    """Memory for the training state of a rank; what it holds stays put until the next `take`.

    The memory is anonymous, so it has no name that could be left behind, and it is shared with
    processes that are forked later. The layout of each tensor is kept, as a copy that changes the
    layout takes several times as long.
    """

    def __init__(self, size: int) -> None:
        self._memory = torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)
        self._places: dict[Key, Place] = {}
        self._copies: dict[Key, Tensor] = {}
        self._filled = 0

    def prepare(self, device: torch.device) -> None:
        """Prepare the memory for the first copy, which would otherwise take ten times as long.

        For a GPU, it is page-locked. Raises `RuntimeError` if the system does not allow that.
        """
        if device.type == "cuda":
            with torch.cuda.device(device):
                lock_pages(self._memory)
        else:
            # Writing to every page makes the kernel allocate it now instead of during the first
            # copy.
            self._memory.zero_()

    def take(self, tensors: Mapping[Key, Tensor]) -> dict[Key, Place]:
        """Copy the tensors and return their places; training waits for no other part of a save."""
        with torch.no_grad():
            for key, tensor in tensors.items():
                self._copy_of(key, tensor).copy_(tensor, non_blocking=True)
        # Copies from a GPU may still be running, and the saver, another process, cannot
        # wait for them.
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {key: self._places[key] for key in tensors}

    def at(self, place: Place) -> Tensor:
        """Return the tensor at a place, without copying it."""
        # `view` to a wider type needs a length that is a multiple of its size. Offsets are
        # multiples of `_ALIGNMENT`, and so is the total if it is a sum of `room_for` results.
        flat = self._memory[place.offset :].view(place.dtype)
        return flat.as_strided(place.shape, place.stride)

    def _copy_of(self, key: Key, tensor: Tensor) -> Tensor:
        """Return the tensor that holds the copy, at the same place every time."""
        known = self._places.get(key)
        if known is None or known.shape != tensor.shape or known.dtype != tensor.dtype:
            # `empty_like` keeps the strides of a dense tensor, in any order of dimensions, and
            # makes those of any other tensor dense, so the copy
            # never spans more than `room_for`. On
            # "meta", it allocates nothing.
            layout = torch.empty_like(tensor, device="meta").stride()
            known = Place(
                offset=self._filled, dtype=tensor.dtype, shape=tensor.shape, stride=layout
            )
            self._filled += room_for(tensor)
            self._places[key] = known
            self._copies[key] = self.at(known)
        return self._copies[key]
