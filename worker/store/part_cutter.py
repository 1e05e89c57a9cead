"""Bytes that come in pieces of any size, as parts of one size."""

from collections.abc import Iterable, Iterator

import numpy as np

from worker.store.interface import Piece


def cut(pieces: Iterable[Piece], size: int) -> Iterator[bytearray]:
    """The bytes of all pieces in parts of `size`, the last one of what is left.

    Copied by numpy, which lets other threads run meanwhile; a training step would wait for the
    interpreter's own way.
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
                part, filled = bytearray(size), 0
    if filled:
        yield part[:filled]
