"""Tars, made by hand."""

import io
import tarfile
from collections.abc import Callable

from PIL import Image

from worker.data import shard_scan as shard_module
from worker.data.shard_scan import scan_shard
from worker.store import open_store

Members = list[tuple[str, bytes]]


def image(kind: str = "JPEG", shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade % 256, 0, 99)).save(buffer, kind)
    return buffer.getvalue()


def tar(members: Members, form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def labeled(count: int, first: int = 0, label: Callable[[int], str] = str) -> Members:
    return [
        member
        for n in range(first, first + count)
        for member in ((f"{n:04d}.cls", label(n % 3).encode()), (f"{n:04d}.jpg", image(shade=n)))
    ]


def put(uri: str, **shards: bytes) -> None:
    for name, data in shards.items():
        open_store(uri).put(f"{name}.tar", data)


def scan(data: bytes) -> shard_module.Scan:
    return scan_shard(lambda start, stop: data[start:stop], len(data))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLE = tar(labeled(4))


SIZE = scan(WHOLE).rows[0].length
