"""Ways to damage bytes, text and JSON data, by chance."""

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

_INTEGERS = (0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63))
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", " ", [], {}, [[]], {"": None}, 0.5, -0.0, 1e308, 1e-320, "x" * 300),
    *(
        "\x00",
        "\ud800",
        "\ufeff",
        "é",
        "e\u0301",
        "-1",
        "1e9",
        "NaN",
        "../..",
        "s3://b/k",
        "{a..z}",
    ),
    *_INTEGERS,
)
_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"NaN",
        b"Infinity",
        b"-1",
        b"9" * 40,
        b"1e999",
    ),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\ud800", b"\n", b":", b",", b"&a", b"*a", b"<<: *a"),
    *(
        b"null",
        b"true",
        b"\xed\xa0\x80",
        b"caf\xe9",
        b"ustar\x0000",
        b"\xff\xd8",
        b"\xff\xda",
        b"RIFF",
    ),
)
_TIMES = (1, 1, 2, 4)


def damaged(data: bytes, chance: Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with a few things done to them."""
    result = bytearray(data)
    for _ in range(chance.choice(_TIMES)):
        _damage(result, chance, others)
    return bytes(result)


def _damage(data: bytearray, chance: Random, others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    span = slice(at, at + chance.choice((1, 2, 4, 8, 64, 512, 4096)))
    match chance.randrange(10):
        case 0 | 1 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 2 if data:
            data[at % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        case 3:
            del data[span]
        case 4:
            del data[at:]
        case 5:
            data[at:at] = data[span] * chance.choice((1, 1, 2, 50))
        case 6:
            data[at:at] = chance.choice(_TOKENS)
        case 7:
            data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
        case 8 if others:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            data[span] = other[begin : begin + 512]
        case _:
            size = chance.choice((1, 2, 4, 8))
            number = chance.choice(_INTEGERS) % (1 << 8 * size)
            data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))


def damaged_json(value: Any, chance: Random) -> bytes:
    """JSON data with a few values, keys and items altered; now and then the bytes of it."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice(_TIMES)):
        value = _damage_json(value, chance)
    text = json.dumps(value).encode()
    return damaged(text, chance) if chance.random() < 0.2 else text


def _damage_json(value: Any, chance: Random) -> Any:
    if chance.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return _other(value, chance)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        match chance.randrange(5):
            case 0:
                del value[at]
            case 1:
                value.insert(at, copy.deepcopy(value[at]))
            case 2:
                value.append(chance.choice(_VALUES))
            case _:
                value[at] = _damage_json(value[at], chance)
        return value
    key = chance.choice(list(value))
    match chance.randrange(5):
        case 0:
            del value[key]
        case 1:
            value[str(chance.choice(_VALUES))] = value.pop(key)
        case 2:
            value[str(key).title()] = copy.deepcopy(value[key])
        case _:
            value[key] = _damage_json(value[key], chance)
    return value


def _other(value: Any, chance: Random) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 2, 1000, -1000))
    if isinstance(value, str) and chance.random() < 0.5:
        return damaged(value.encode(errors="surrogatepass"), chance).decode(errors="replace")
    if chance.random() < 0.02:
        return json.loads("[" * 90 + "]" * 90)
    return copy.deepcopy(chance.choice(_VALUES))


def text_of(chance: Random, pieces: Sequence[str]) -> str:
    """Text put together from pieces and from any characters."""
    parts = []
    for _ in range(chance.randint(0, 9)):
        if chance.random() < 0.8:
            parts.append(chance.choice(pieces))
        else:
            parts.append(chr(chance.choice((chance.randrange(128), chance.randrange(0x11000)))))
    return "".join(parts)
