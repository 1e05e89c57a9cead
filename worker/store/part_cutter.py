"""Parts of equal size, cut from a byte stream that arrives in pieces of any size."""

from collections.abc import Iterable, Iterator

import numpy as np

from worker.store.interface import Piece


def cut(pieces: Iterable[Piece], size: int) -> Iterator[bytearray]:
    """Yield the bytes of all pieces in parts of `size` bytes; the last part may be smaller.

    Copies with numpy, which releases the GIL; a copy in plain Python would hold it, and training
    steps would have to wait.
    """
    part, filled = bytearray(size), 0
    for piece in pieces:
        source = np.frombuffer(piece, np.uint8)
        while len(source):
            taken = source[: size - filled]
            np.frombuffer(part, np.uint8)[filled : filled + len(taken)] = taken
            source, filled = source[len(taken) :], filled + len(taken)
            if filled == size:
                yield part
                # Not reused: the caller may still be uploading what it was given.
                part, filled = bytearray(size), 0
    if filled:
        yield part[:filled]
