"""The segments of a JPEG before its first scan (ITU-T T.81, annex B)."""

from dataclasses import dataclass

_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantization, restart interval
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PROGRESSIVE, _SCAN_HEADER = 0xC2, 0xDA
_SCAN = b"\xff\xda"


@dataclass(frozen=True, slots=True)
class Header:
    """The segments of an ordinary JPEG before its pixels."""

    size: int
    """Bytes up to the first scan."""
    one_scan: bool
    """Whether that scan holds all pixels, in which case libjpeg decodes no other."""


def read_header(data: memoryview) -> Header | None:
    """Return the header of a JPEG, or None if it is unusual.

    Takes microseconds, whereas searching the entire image takes a good part of its decode time.
    """
    at, frame, components = 2, 0, 0
    while at + 5 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        # Big-endian; counts its own two bytes, but not the two of the marker.
        length = data[at + 2] << 8 | data[at + 3]
        if marker == _SCAN_HEADER:
            # SOS (B.2.3) starts with its length and the number of components in the scan.
            whole = frame not in (0, _PROGRESSIVE) and data[at + 4] == components
            return Header(at, whole) if frame else None
        # SOF (B.2.2): length, precision, height, width, then the number of components at offset 9.
        # A second SOF is unusual and ends the search below.
        if marker in _FRAMES and length > 7 and not frame and at + 9 < len(data):
            frame, components = marker, data[at + 9]
        elif marker not in _APPLICATION and marker not in _TABLES and marker != _COMMENT:
            return None
        if length < 2:
            return None
        at += 2 + length
    return None


def count_scans(data: memoryview) -> int:
    """Return an upper bound on the number of scans that libjpeg decodes."""
    header = read_header(data)
    # Entropy-coded data has 0x00 after each byte 0xFF (B.1.1.5), so only markers match there; a
    # thumbnail in a segment adds to the count, hence the upper bound.
    return 1 if header and header.one_scan else bytes(data).count(_SCAN)
