"""Settings of this process's memory."""

import contextlib
import ctypes

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def configure_memory(*, keep_freed: bool) -> None:
    """Have glibc keep one heap for all threads, and with `keep_freed` what a step frees.

    By default each thread that reads or decodes gets a heap of its own, whose holes took up to
    four times the memory that was asked for. And large blocks go back to the kernel at once; the
    page faults that follow took half of the time of a training step on the CPU (EfficientNet-B0,
    2 virtual cores: 8.6 to 3.9 s).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        if keep_freed:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def lock_pages(memory: Tensor) -> None:
    """Page-lock memory of the CPU for the GPU of this process, which then copies beside it.

    Raises `RuntimeError` if the system does not allow it.
    """
    code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(code):
        # CUDA remembers the failure, and the next kernel would be blamed for it.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda").add_(1)
        raise RuntimeError(f"cudaHostRegister of {memory.nbytes} bytes: {code}")
