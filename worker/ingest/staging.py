"""Staged objects of a pack, below the destination, from which it resumes at whole units and shards.

They are named after a digest of the source and of all options that affect a byte, so a pack never
resumes from what another one has left.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from worker.data.index import Shard
from worker.errors import ConfigurationError, InfrastructureError
from worker.ingest.rows import UnitRows
from worker.store import LocalStore, ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json, put_json

_FOLDER = ".pack"
_OWNER = f"{_FOLDER}/owner.json"
_ABANDONED_SECONDS = 7 * 86400.0


class Receipt(StoredRecord):
    """A shard that was written and read back."""

    shard: Shard
    highest: int = Field(ge=0, le=0xFFFF)
    """See `Scan.highest`."""


def pack_id(facts: Mapping[str, Any]) -> str:
    """Return the identity of a pack, given all that determines its result."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Staging:
    """The staged objects of one pack; safe for any number of processes and machines at once.

    Args:
        store: The destination.
        identity: The result of `pack_id`.
    """

    def __init__(self, store: Store, identity: str) -> None:
        self.store = store
        self.identity = identity
        self._root = f"{_FOLDER}/{identity}/"

    def units(self) -> set[int]:
        """Return the numbers of the units that have been read."""
        return self._numbers("units/", ".npz")

    def put_rows(self, unit: int, rows: UnitRows) -> None:
        """Stage the rows of a unit, which marks it as read; its chunks must be staged first."""
        self.store.put(f"{self._root}units/{unit:07d}.npz", rows.encode())

    def rows(self, unit: int) -> UnitRows:
        """Return the rows of a unit that has been read."""
        name = f"{self._root}units/{unit:07d}.npz"
        data = self.store.get(name)
        try:
            return UnitRows.decode(data)
        except Exception:  # on damaged bytes, numpy and zipfile may raise anything
            self.store.delete(name)
            raise InfrastructureError(
                f"{self.store.uri}{name}: is damaged and was removed; run the same command again"
            ) from None

    def forget_unit(self, unit: int) -> None:
        """Have a unit read again by the next start."""
        self.store.delete(f"{self._root}units/{unit:07d}.npz")

    def put_chunk(self, unit: int, chunk: int, data: bytes) -> None:
        """Stage a chunk of encoded images."""
        self.store.put(self._chunk(unit, chunk), data)

    def read_chunk(self, unit: int, chunk: int, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of a chunk."""
        return self.store.get(self._chunk(unit, chunk), start, stop)

    def put_receipt(self, split: str, shard: int, receipt: Receipt) -> None:
        """Note that a shard is complete."""
        name = self._receipt(split, shard)
        put_json(self.store, name, receipt.model_dump())

    def receipt(self, split: str, shard: int) -> Receipt | None:
        """Return the receipt of a shard; None if there is none, or if it is damaged."""
        try:
            return get_json(self.store, self._receipt(split, shard), Receipt)
        except ObjectMissing:
            return None

    def receipts(self, split: str) -> set[int]:
        """Return the numbers of the shards of a split that are complete."""
        return self._numbers(f"shards/{split or 'all'}/", ".json")

    def claim(self, *, replace: bool) -> bool:
        """Claim the destination for this pack, until `clear`; return whether this call did.

        Args:
            replace: Whether to take it over from another pack.

        Raises:
            ConfigurationError: If another pack has claimed it.
        """
        # Unique, so that no part takes the claim of another part of this pack for its own.
        data = json.dumps({"pack": self.identity, "by": uuid.uuid4().hex}).encode()
        if self.store.put_if_absent(_OWNER, data):
            return True
        with contextlib.suppress(ObjectMissing, ValueError):
            if json.loads(self.store.get(_OWNER)).get("pack") == self.identity:
                return False
        if not replace:
            raise ConfigurationError(
                f"{self.store.uri}: another pack, of another source or with other options, is "
                "writing here or was interrupted; let it finish, choose another place, or pass "
                "--overwrite"
            )
        self.store.put(_OWNER, data)
        return True

    def clear(self) -> None:
        """Remove what this pack has staged, and what abandoned packs have left."""
        long_ago = time.time() - _ABANDONED_SECONDS
        for info in list(self.store.list(f"{_FOLDER}/")):
            if info.key == _OWNER or info.key.startswith(self._root) or info.modified < long_ago:
                self.store.delete(info.key)
        if isinstance(self.store, LocalStore):
            for folder, _, _ in os.walk(self.store.root / _FOLDER, topdown=False):
                with contextlib.suppress(OSError):  # holds something of another pack
                    Path(folder).rmdir()

    def _chunk(self, unit: int, chunk: int) -> str:
        return f"{self._root}chunks/{unit:07d}-{chunk:04d}.bin"

    def _receipt(self, split: str, shard: int) -> str:
        return f"{self._root}shards/{split or 'all'}/{shard:07d}.json"

    def _numbers(self, folder: str, suffix: str) -> set[int]:
        names = (info.key.removeprefix(self._root + folder) for info in self._listed(folder))
        stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
        return {int(stem) for stem in stems if stem.isdecimal()}

    def _listed(self, folder: str) -> list[Any]:
        return list(self.store.list(self._root + folder))
