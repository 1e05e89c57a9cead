"""`worker pack`: from a source to indexed data sets, in two passes that any number can share.

1. Every unit of the source is read: images are decoded, hashed and, if need be, staged.
2. From the rows of all units the plan follows, a pure function; its shards are written.

With `--part I/N`, this process does every N-th unit and shard, and waits for the others in between.
Whoever finds all shards complete writes the index.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.data.index import INDEX_NAME, Index, parse_address, read_index, require_no_index
from worker.data.shard_scan import depth_for
from worker.errors import ConfigurationError, InfrastructureError
from worker.ingest.dataset_record import DATASET_NAME, DatasetRecord, read_dataset_record
from worker.ingest.image_check import ImageOptions
from worker.ingest.plan import PlannedSplit, PlanOptions, SetPlan, make_plan
from worker.ingest.processes import work_on
from worker.ingest.read_units import read_unit
from worker.ingest.rows import Row, UnitRows
from worker.ingest.source import Source
from worker.ingest.staging import Receipt, Staging, pack_id
from worker.ingest.write_shards import Place, ShardWriter
from worker.store import Store, open_store
from worker.store.json_records import put_json

_POLL_SECONDS = 2.0
_MAX_IDLE_SECONDS = 1800.0
_CHUNKS_IN_MEMORY = 4
"""Copies of a chunk's bytes that a process may hold: as read, joined, on their way to the store."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Settings of a pack, and the resources that it may use."""

    image: ImageOptions
    """How images are checked and stored."""
    plan: PlanOptions
    """How they become data sets."""
    workers: int
    """The number of processes."""
    memory: int
    """Bytes of images that all processes together may hold."""
    part: tuple[int, int] = (0, 1)
    """Which part this is, from 0, and how many there are."""
    overwrite: bool = False
    """Whether to replace other data sets at the destination."""

    def chunk_bytes(self) -> int:
        """Return the size at which a process stages a chunk."""
        return max(1 << 20, self.memory // (_CHUNKS_IN_MEMORY * self.workers))


Advance = Callable[[int, int], None]
Say = Callable[[str], None]


class Pack:
    """A pack of one source into one destination.

    Args:
        source: The source.
        dest: Address of the destination, below which each split has its own data set.
        options: What is wanted.
        facts: What else decides on the result, such as the source's address and its columns.
    """

    def __init__(
        self, source: Source, dest: str, options: PackOptions, facts: dict[str, Any]
    ) -> None:
        self.source = source
        self.options = options
        self._dest = dest.rstrip("/")
        self._facts = facts
        units = [tuple(unit) for unit in source.units]
        self.identity = pack_id({**facts, "units": units, **_shaping(options)})
        self.staging = Staging(open_store(self._dest), self.identity)

    def finished(self) -> DatasetRecord | None:
        """Return the record of this very pack, if it has been completed."""
        for store in self._stores():
            record = read_dataset_record(store)
            if record and record.pack == self.identity and _has_index(store):
                return record
        return None

    def require_free(self) -> None:
        """Raise `ConfigurationError` if the destination holds data sets of another pack."""
        if not self.options.overwrite:
            for store in self._stores():
                require_no_index(store, "choose another place")

    def read(self, advance: Advance, *, dry: bool) -> list[UnitRows]:
        """Read this part's units, as far as they have not been read; return those of a dry run."""
        mine = range(self.options.part[0], len(self.source.units), self.options.part[1])
        done = set() if dry else self.staging.units()
        for unit in done & set(mine):
            advance(self.source.units[unit].images or 0, 0)

        def work(unit: int, advance: Advance) -> tuple[int, UnitRows | None]:
            put = None if dry else lambda number, data: self.staging.put_chunk(unit, number, data)
            rows = read_unit(
                self.source,
                unit,
                self.options.image,
                seed=self.options.plan.split.seed,
                chunk_bytes=self.options.chunk_bytes(),
                put_chunk=put,
                advance=advance,
            )
            if dry:
                return unit, rows
            self.staging.put_rows(unit, rows)
            return unit, None

        todo = [unit for unit in mine if unit not in done]
        found = dict(work_on(todo, work, self.options.workers, advance))
        return [rows for _, rows in sorted(found.items()) if rows]

    def wait_for_units(self, say: Say) -> list[UnitRows] | None:
        """Wait until all units have been read, by whatever part; return their rows.

        Returns None if another part has meanwhile completed the pack.
        """
        wanted = len(self.source.units)
        if not self._wait(lambda: len(self.staging.units()), wanted, "units", say):
            return None
        return [self.staging.rows(unit) for unit in range(wanted)]

    def write(self, plan: SetPlan, places: Sequence[Place], advance: Advance) -> None:
        """Write this part's shards, as far as they are not complete."""
        writer = ShardWriter(source=self.source, staging=self.staging, plan=plan, places=places)
        self._take_over()
        jobs = [(split, number) for split in plan.splits for number in range(len(split.shards))]
        mine = jobs[self.options.part[0] :: self.options.part[1]]
        done = {split.name: self.staging.receipts(split.name) for split in plan.splits}
        todo = [n for n, (split, number) in enumerate(mine) if number not in done[split.name]]
        finished = len(mine) - len(todo)
        for split, number in (mine[n] for n in set(range(len(mine))) - set(todo)):
            advance(len(split.shards[number]), 0)

        def work(n: int, advance: Advance) -> int:
            split, number = mine[n]
            size = writer.write(split, number, self._store_of(split))
            advance(len(split.shards[number]), size)
            return n

        finished += sum(1 for _ in work_on(todo, work, self.options.workers, advance))

    def _take_over(self) -> None:
        """Claim the destination, and remove the indexes of other packs: shards will be replaced.

        Those of splits that this pack does not have go as well: nothing of an old set may be taken
        for a part of the new one.
        """
        self.staging.claim(replace=self.options.overwrite)
        for store in self._stores():
            record = read_dataset_record(store)
            if record is None or record.pack != self.identity:
                store.delete(INDEX_NAME)
                store.delete(DATASET_NAME)

    def complete(self, plan: SetPlan, record: DatasetRecord, say: Say) -> list[Index]:
        """Wait for all shards, and write the indexes and records, unless another part has.

        Returns:
            The index of each split.
        """
        total = sum(len(split.shards) for split in plan.splits)

        def ready() -> int:
            return sum(len(self.staging.receipts(split.name)) for split in plan.splits)

        if self._wait(ready, total, "shards", say):
            receipts = {split.name: self._receipts(split) for split in plan.splits}
            highest = max(receipt.highest for receipt in receipts[plan.splits[0].name])
            depth = depth_for(highest)
            for split in plan.splits:
                shards = tuple(receipt.shard for receipt in receipts[split.name])
                index = Index(classes=plan.classes, shards=shards, depth=depth)
                self._publish(self._store_of(split), index, record)
            self._remove_other_splits(plan)
            self.staging.clear()
        return [read_index(parse_address(self._store_of(split).uri)) for split in plan.splits]

    def _remove_other_splits(self, plan: SetPlan) -> None:
        own = {self._store_of(split).uri for split in plan.splits}
        for store in self._stores():
            if store.uri not in own:
                _remove_shards(store, set())

    def _publish(self, store: Store, index: Index, record: DatasetRecord) -> None:
        kept = {name for shard in index.shards for name in (shard.name, shard.sidecar)}
        _remove_shards(store, kept)
        put_json(store, DATASET_NAME, record.model_dump())
        # Last, as a data set without an index does not exist. Every part would write the same.
        data = index.model_dump_json(exclude_none=True, indent=1).encode()
        store.put_if_absent(INDEX_NAME, data)
        if read_index(parse_address(store.uri)) != index:
            raise InfrastructureError(f"{store.uri}{INDEX_NAME}: does not read back as written")

    def _receipts(self, split: PlannedSplit) -> list[Receipt]:
        found = [self.staging.receipt(split.name, n) for n in range(len(split.shards))]
        if None in found:
            raise InfrastructureError(f"{self._dest}: a staged receipt is damaged; pack again")
        return [receipt for receipt in found if receipt]

    def _wait(self, ready: Callable[[], int], wanted: int, what: str, say: Say) -> bool:
        """Wait until other parts have done their share; return False if all is completed."""
        last, since = -1, time.monotonic()
        while (have := ready()) < wanted:
            if self.options.part[1] > 1 and self.finished():
                return False
            if have != last:
                say(f"waiting for the other parts: {have} of {wanted} {what} are done")
                last, since = have, time.monotonic()
            if time.monotonic() - since > _MAX_IDLE_SECONDS or self.options.part[1] == 1:
                raise InfrastructureError(
                    f"{have} of {wanted} {what} are done, and no part makes progress; start all "
                    f"{self.options.part[1]} parts again"
                )
            time.sleep(_POLL_SECONDS)
        return True

    def _stores(self) -> list[Store]:
        return [open_store(f"{self._dest}/{name}") for name in ("", "train", "val", "test")]

    def _store_of(self, split: PlannedSplit) -> Store:
        return open_store(f"{self._dest}/{split.name}")


def plan_of(
    units: Sequence[UnitRows], source: Source, options: PlanOptions
) -> tuple[SetPlan, list[Place]]:
    """Return the plan, and the place of each of its rows.
    Raises the errors of `make_plan`.
    """
    places = [(u, n) for u, unit in enumerate(units) for n in range(len(unit.rows))]
    rows: list[Row] = list(itertools.chain.from_iterable(unit.rows for unit in units))
    if not rows:
        raise ConfigurationError(f"{source.description}: holds no images")
    return make_plan(rows, source.classes, options), places


def passed_over(units: Sequence[UnitRows], source: Source) -> Counter[str]:
    """Return the number of entries that are not images of the set, by kind."""
    return sum((Counter(unit.passed_over) for unit in units), Counter(source.passed_over))


def _shaping(options: PackOptions) -> dict[str, Any]:
    """Return the options that affect any byte of the result."""
    return {"image": asdict(options.image), "plan": asdict(options.plan)}


def _remove_shards(store: Store, kept: set[str]) -> None:
    """Remove shards and sidecars that a pack has written, except some."""
    for info in list(store.list("shard-")):
        if info.key not in kept and info.key.endswith((".tar", ".samples.npy")):
            store.delete(info.key)


def _has_index(store: Store) -> bool:
    try:
        read_index(parse_address(store.uri))
    except ConfigurationError:
        return False
    return True
