"""How this process uses its memory."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def settle_memory(keep_freed: bool) -> None:
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
