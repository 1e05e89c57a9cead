"""`worker pack`: from a source to indexed data sets, in two passes shared by any number of parts.

1. Every unit of the source is read: images are decoded, hashed and, if need be, staged.
2. The plan is computed from the rows of all units, by a pure function; its shards are written.

With `--part I/N`, this process handles every N-th unit and shard. Between the passes, it waits for
the other parts. Any part that finds all shards complete writes the index.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.data.index import Index, parse_address, read_index, require_no_index
from worker.data.sample_table import table_name, write_table
from worker.data.shard_scan import depth_for
from worker.errors import ConfigurationError, InfrastructureError
from worker.ingest.dataset_record import DATASET_NAME, DatasetRecord, read_dataset_record
from worker.ingest.image_check import ImageOptions
from worker.ingest.plan import make_plan
from worker.ingest.planned import PlannedSplit, PlanOptions, SetPlan
from worker.ingest.processes import work_on
from worker.ingest.read_units import read_unit
from worker.ingest.rows import Row, UnitRows
from worker.ingest.source import Source
from worker.ingest.staging import Receipt, Staging, pack_id
from worker.ingest.write_shards import OWN_NAME, Changed, Place, ShardWriter
from worker.layout import INDEX_NAME
from worker.store import ObjectMissing, Store, open_store
from worker.store.json_records import put_json
from worker.store.output_kinds import DATASET, require_no_other_kind

_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.2, 5.0
_MAX_IDLE_SECONDS = 1800.0
_CHUNKS_IN_MEMORY = 4
"""Copies of a chunk that a process may hold: as read, joined, and on the way to the store."""


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
        options: The settings.
        facts: Whatever else determines the result, such as the source's address and its columns.
    """

    def __init__(
        self, source: Source, dest: str, options: PackOptions, facts: dict[str, Any]
    ) -> None:
        self.source = source
        self.options = options
        self._dest = dest.rstrip("/")
        units = [tuple(unit) for unit in source.units]
        self.identity = pack_id({**facts, "units": units, **_shaping(options)})
        self.staging = Staging(open_store(self._dest), self.identity)

    def finished(self) -> DatasetRecord | None:
        """Return the record of this very pack; None if it has not been completed."""
        for store in self._stores():
            record = read_dataset_record(store)
            if record and record.pack == self.identity:
                stores = [open_store(f"{self._dest}/{name}") for name in record.splits]
                return record if all(map(self._is_published, stores)) else None
        return None

    def _is_published(self, store: Store) -> bool:
        record = read_dataset_record(store)
        return bool(record and record.pack == self.identity and _has_index(store))

    def require_free(self) -> None:
        """Raise `ConfigurationError` if the destination holds anything but this pack.

        Data sets of other packs are no hindrance with the option `overwrite`.
        """
        for store in self._stores():
            record = read_dataset_record(store)
            if record is None or record.pack != self.identity:  # else this one resumes
                if not self.options.overwrite:
                    require_no_index(store, "choose another place")
                require_no_other_kind(store, DATASET, "choose another place")

    def read(self, advance: Advance, *, dry: bool) -> list[UnitRows]:
        """Read this part's units that are still unread; in a dry run, return their rows."""
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
        """Wait until all units have been read, by this part or others; return their rows.

        Returns None if another part has meanwhile completed the pack.
        """
        wanted = len(self.source.units)
        if not self._wait(lambda: len(self.staging.units()), wanted, "units", say):
            self.staging.clear()  # of what this part has staged since
            return None
        try:
            return [self.staging.rows(unit) for unit in range(wanted)]
        except ObjectMissing:
            if self.finished():  # another part has completed the pack and cleared the staging
                return None
            raise

    def write(self, plan: SetPlan, places: Sequence[Place], advance: Advance) -> None:
        """Write those of this part's shards that are not complete yet."""
        if self.finished():
            return
        writer = ShardWriter(source=self.source, staging=self.staging, plan=plan, places=places)
        self._take_over()
        jobs = [(split, number) for split in plan.splits for number in range(len(split.shards))]
        mine = jobs[self.options.part[0] :: self.options.part[1]]
        done = {split.name: self._complete_shards(split) for split in plan.splits}
        todo = [n for n, (split, number) in enumerate(mine) if number not in done[split.name]]
        for split, number in (mine[n] for n in set(range(len(mine))) - set(todo)):
            advance(len(split.shards[number]), 0)

        def work(n: int, advance: Advance) -> int:
            split, number = mine[n]
            size = writer.write(split, number, self._store_of(split))
            advance(len(split.shards[number]), size)
            return n

        try:
            for _ in work_on(todo, work, self._writers(), advance):
                pass
        except ObjectMissing:
            if not self.finished():  # else another part has completed the pack and cleared this
                raise
        except Changed as change:
            self.staging.forget_unit(change.unit)  # to be read again by the next start
            raise

    def _take_over(self) -> None:
        """Claim the destination, and remove the indexes of other packs: shards will be replaced.

        The indexes of splits that this pack does not have are removed as well, so that no remnant
        of an old set is taken for a part of the new one.
        """
        if not self.staging.claim(replace=self.options.overwrite):
            return  # another part, or an earlier start, has done this
        for store in self._stores():
            record = read_dataset_record(store)
            if record is None or record.pack != self.identity:
                store.delete(INDEX_NAME)
                store.delete(DATASET_NAME)

    def _writers(self) -> int:
        """Return how many processes may write at once: each holds its shard three times."""
        room = self.options.memory // (3 * max(1, self.options.plan.shard_bytes))
        return max(1, min(self.options.workers, room))

    def _complete_shards(self, split: PlannedSplit) -> set[int]:
        """Return the shards that are complete, and still there in full."""
        sizes = {info.key: info.size for info in self._store_of(split).list("shard-")}
        found = set()
        for number in self.staging.receipts(split.name):
            receipt = self.staging.receipt(split.name, number)
            if receipt and sizes.get(receipt.shard.name) == receipt.shard.bytes:
                found.add(number)
        return found

    def complete(self, plan: SetPlan, record: DatasetRecord, say: Say) -> list[Index]:
        """Wait for all shards, and write the indexes and records unless another part has done so.

        Returns:
            The index of each split.
        """
        total = sum(len(split.shards) for split in plan.splits)

        def ready() -> int:
            return sum(len(self.staging.receipts(split.name)) for split in plan.splits)

        if not self.finished() and self._wait(ready, total, "shards", say):
            receipts = self._all_receipts(plan)
            if receipts is None:  # another part has just completed the pack
                return self._indexes(plan)
            highest = max(receipt.highest for receipt in receipts[plan.splits[0].name])
            depth = depth_for(highest)
            for split in plan.splits:
                shards = tuple(receipt.shard for receipt in receipts[split.name])
                store = self._store_of(split)
                table = write_table(store, shards)
                index = Index(classes=plan.classes, shards=shards, depth=depth, table=table)
                self._publish(store, index, record)
            self._remove_other_splits(plan)
        self.staging.clear()
        return self._indexes(plan)

    def _indexes(self, plan: SetPlan) -> list[Index]:
        return [read_index(parse_address(self._store_of(split).uri)) for split in plan.splits]

    def _all_receipts(self, plan: SetPlan) -> dict[str, list[Receipt]] | None:
        """Return the receipts of each split; None if the pack has been completed and cleared."""
        try:
            return {split.name: self._receipts(split) for split in plan.splits}
        except InfrastructureError:
            if self.finished():
                return None
            raise

    def _remove_other_splits(self, plan: SetPlan) -> None:
        own = {self._store_of(split).uri for split in plan.splits}
        for store in self._stores():
            if store.uri not in own:
                _remove_shards(store, set())
                store.delete(INDEX_NAME)
                store.delete(DATASET_NAME)

    def _publish(self, store: Store, index: Index, record: DatasetRecord) -> None:
        kept = {name for shard in index.shards for name in (shard.name, shard.sidecar)}
        kept.add(table_name(index.table or ""))
        _remove_shards(store, kept)
        before = read_dataset_record(store)
        if before is None or before.pack != self.identity:
            store.delete(INDEX_NAME)
        put_json(store, DATASET_NAME, record.model_dump())
        # Written last: without an index, there is no data set. Every part would write the same one.
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
        """Wait until all are done; return False if another part has completed the pack."""
        last, since, pause = -1, time.monotonic(), _MIN_POLL_SECONDS
        while (have := ready()) < wanted:
            if self.options.part[1] > 1 and self.finished():
                return False
            if have != last:
                say(f"waiting for the other parts: {have} of {wanted} {what} are done")
                last, since = have, time.monotonic()
            if time.monotonic() - since > _MAX_IDLE_SECONDS or self.options.part[1] == 1:
                raise InfrastructureError(
                    f"{have} of {wanted} {what} are done, and no part is making progress; start "
                    f"all {self.options.part[1]} parts again"
                )
            time.sleep(pause)
            pause = min(_MAX_POLL_SECONDS, 1.3 * pause)
        return True

    def _stores(self) -> list[Store]:
        return [open_store(f"{self._dest}/{name}") for name in ("", "train", "val", "test")]

    def _store_of(self, split: PlannedSplit) -> Store:
        return open_store(f"{self._dest}/{split.name}")


def plan_of(
    units: Sequence[UnitRows], source: Source, options: PlanOptions
) -> tuple[SetPlan, list[Place]]:
    """Return the plan, and the place of each of its rows; raise the errors of `make_plan`."""
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
    """Remove the objects that a pack has written, except those in `kept`."""
    for info in [*store.list("shard-"), *store.list("samples.")]:
        if info.key not in kept and OWN_NAME.fullmatch(info.key):
            store.delete(info.key)


def _has_index(store: Store) -> bool:
    try:
        read_index(parse_address(store.uri))
    except ConfigurationError:
        return False
    return True
