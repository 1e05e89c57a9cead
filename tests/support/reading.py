"""A store that counts reads."""

import pytest

from worker.store import Store


def counting(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tars that are read from `store`, as they are."""
    names: list[str] = []
    get = store.get

    def counted(key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key.endswith(".tar"):
            names.append(key)
        return get(key, start, stop)

    monkeypatch.setattr(store, "get", counted)
    return names
