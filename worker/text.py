"""Text that others wrote: never guessed, and never decoded with replacement."""

import unicodedata

_BOM = "\ufeff"
_SHOWN = 40
_JOINERS = "\u200c\u200d"  # which some scripts, and emoji, are spelled with


def read_text(data: bytes) -> str:
    """Return UTF-8 text, without the byte order mark that it may begin with.

    Raises `ValueError`, which shows the bytes that are wrong, if it is anything else.
    """
    try:
        return data.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - _SHOWN // 2) : error.start + _SHOWN // 2]
        raise ValueError(
            f"is not UTF-8 text (byte {error.start}, in {around!r}); convert it to UTF-8"
        ) from None


def read_name(text: str) -> str:
    """Return a name in the form in which names are compared: stripped, and in Unicode's NFC.

    Raises `ValueError` for what no name holds: control characters, which UTF-16 read as UTF-8 has
    in every second place; lone surrogates, which nothing can write; and marks that nobody sees, by
    which one class would be two.
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
    return category in ("Cc", "Cs") or (category == "Cf" and character not in _JOINERS)


def printable(text: str) -> str:
    """Return a text for a message of one line: what cannot be printed is escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
