"""Decoding of external text, without guessing encodings or replacing invalid bytes."""

import unicodedata

_BOM = "\ufeff"
_SHOWN = 40
_JOINERS = "\u200c\u200d"  # which some scripts, and emoji, require


def read_text(data: bytes) -> str:
    """Decode UTF-8 text, without the byte order mark that it may begin with.

    Raises `ValueError`, showing the invalid bytes, if it is not UTF-8.
    """
    try:
        return data.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - _SHOWN // 2) : error.start + _SHOWN // 2]
        raise ValueError(
            f"is not UTF-8 text (byte {error.start}, in {around!r}); convert it to UTF-8"
        ) from None


def read_name(text: str) -> str:
    """Return a name in the form in which names are compared: stripped, and in Unicode NFC.

    Raises `ValueError` for characters that no name contains: control characters, as found in UTF-16
    read as UTF-8; lone surrogates, which cannot be encoded; and invisible format characters, which
    would split one class into two.
    """
    name = unicodedata.normalize("NFC", text.strip())
    wrong = next(filter(_is_wrong, name), None)
    if wrong is not None:
        shown = name.encode(errors="backslashreplace")[:_SHOWN]
        raise ValueError(
            f"holds the character U+{ord(wrong):04X} (in {shown!r}); write plain UTF-8"
        )
    return name


def _is_wrong(character: str) -> bool:
    category = unicodedata.category(character)
    # General categories (UAX #44): control, surrogate and format characters.
    return category in ("Cc", "Cs") or (category == "Cf" and character not in _JOINERS)


def printable(text: str) -> str:
    """Return text that fits a one-line message: escaped if any of it is not printable."""
    return text if text.isprintable() else ascii(text)[1:-1]
