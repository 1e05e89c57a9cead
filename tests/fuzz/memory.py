"""A store in memory."""

from collections.abc import Callable, Iterable, Iterator

from worker.store import ObjectInfo, ObjectMissing, Piece


class MemoryStore:
    """`Store` over a dictionary."""

    uri = "mem://run/"
    fences = True

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(f"{self.uri}{key}: no such object")
        return self.objects[key][start:stop]

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = bytes(data)

    def put_stream(self, key: str, size: int, pieces: Iterable[Piece]) -> None:
        self.put(key, b"".join(pieces))

    def put_if_absent(
        self, key: str, data: bytes, check: Callable[[], None] = lambda: None
    ) -> bool:
        check()
        return self.objects.setdefault(key, data) == data

    def replace(self, key: str, size: int, pieces: Iterable[Piece], version: str) -> bool:
        if version != ("1" if key in self.objects else ""):
            return False
        self.put_stream(key, size, pieces)
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            yield ObjectInfo(key=key, size=len(self.objects[key]), modified=1.0, version="1")

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def abort_uploads(self, key: str) -> int:
        return 0
