"""The file of an evaluation's sums and outcomes: a compressed `.npz` without pickles."""

import io
import zipfile

import numpy as np

from worker.array_files import load_arrays
from worker.judge.confusion import merge_rows
from worker.judge.paired import RIGHT, Outcomes
from worker.judge.tally import RELIABILITY_BINS, Tally

_MAX_BYTES = 1 << 30  # unpacked; keeps a damaged or foreign file from filling the memory
_FIELDS = ("rows", "histograms", "reliability", "sums")


def encode_tally(tally: Tally, outcomes: Outcomes) -> bytes:
    """Return a tally, and the outcomes of its images, as the bytes of a file."""
    buffer = io.BytesIO()
    arrays = {name: getattr(tally, name) for name in _FIELDS}
    np.savez_compressed(buffer, **arrays, outcomes=outcomes)
    return buffer.getvalue()


def decode_tally(data: bytes, classes: int) -> tuple[Tally, Outcomes]:
    """Return the tally and outcomes in a file. Raises `ValueError` if the file is damaged.

    Args:
        data: The contents of the file.
        classes: The number of classes, as the file must have it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(member.file_size for member in packed.infolist()) > _MAX_BYTES:
                raise ValueError(f"unpacks to more than {_MAX_BYTES} bytes")
        arrays = load_arrays(data)
        rows, histograms, reliability, sums = (arrays[name] for name in _FIELDS)
        outcomes = arrays["outcomes"]
    except ValueError:
        raise
    except Exception as error:  # on arbitrary bytes, the parsers may raise anything
        raise ValueError(f"not a tally ({type(error).__name__})") from None
    parts = (rows, histograms, reliability, sums)
    if any(part.dtype != np.int64 or (part < 0).any() for part in parts):
        raise ValueError("has something else than counts")
    shapes = (rows.shape[1:], histograms.shape[:-1], reliability.shape, sums.shape)
    if shapes != ((3,), (classes, 2), (RELIABILITY_BINS, 3), (6,)) or not histograms.shape[-1]:
        raise ValueError(f"is not that of {classes} classes")
    if outcomes.dtype != np.uint8 or outcomes.ndim != 1 or (outcomes > RIGHT).any():
        raise ValueError("has outcomes that are none")
    if (rows[:, :2] >= classes).any():
        raise ValueError("has a class beyond the last")
    tally = Tally(
        rows=merge_rows([rows]), histograms=histograms, reliability=reliability, sums=sums
    )
    return tally, outcomes
