"""`dataset.json` beside an index: where a data set comes from, and how it was made."""

import hashlib

from pydantic import Field, JsonValue

from worker.ingest.plan import total_copies
from worker.ingest.planned import SetPlan
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json

DATASET_NAME = "dataset.json"
_MAX_LISTED = 1000


class SplitRecord(StoredRecord):
    """A split: the number of its images, their size in bytes, and their number by class."""

    images: int = Field(ge=0)
    bytes: int = Field(ge=0)
    counts: tuple[int, ...]


class DatasetRecord(StoredRecord):
    """The record of a pack; the same beside every split."""

    version: int = 1
    pack: str
    """Identity of the pack: a digest of the source's listing and of all options."""
    made_by: str
    """The version of this package."""
    source: str
    """Address of the source."""
    kind: str
    """The kind of source, as it was recognized."""
    options: dict[str, JsonValue]
    """The options that were given."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    splits: dict[str, SplitRecord]
    """Each split, by name; the name is empty if there is only one data set."""
    bad: dict[str, str]
    """Keys of images that were left out, and why; at most a thousand."""
    bad_count: int = Field(ge=0)
    """The number of images that were left out."""
    passed_over: dict[str, int]
    """Number of entries of the source that are not images of the set, by kind."""
    duplicates: int = Field(ge=0)
    """The number of images whose pixels equal those of an earlier image."""
    duplicate_keys: tuple[tuple[str, ...], ...]
    """Keys of the exact duplicates, at most eight for each of at most a thousand images."""
    near_duplicates: int | None = Field(ge=0)
    """The number of pairs of similar images in different splits; None if not looked for."""
    near_duplicate_keys: tuple[tuple[str, str], ...]
    """Keys of the images in these pairs; at most a thousand pairs."""
    resized: int = Field(ge=0)
    """The number of images that were scaled down."""
    bytes_before: int = Field(ge=0)
    """Size of all packed images in the source, in bytes."""
    digest: str
    """The sha256 of every packed image's key, label, split and content, in order."""


def record_of(
    plan: SetPlan,
    *,
    pack: str,
    made_by: str,
    source: str,
    kind: str,
    options: dict[str, JsonValue],
    passed_over: dict[str, int],
    near: bool,
) -> DatasetRecord:
    """Return the record of a plan.

    Args:
        plan: The plan.
        pack: Identity of the pack.
        made_by: The version of this package.
        source: Address of the source, without secrets.
        kind: The kind of source.
        options: The options that were given.
        passed_over: Number of entries that are not images of the set, by kind.
        near: Whether near duplicates were looked for.
    """
    rows = plan.rows
    packed = [i for split in plan.splits for shard in split.shards for i in shard]
    return DatasetRecord(
        pack=pack,
        made_by=made_by,
        source=source,
        kind=kind,
        options=options,
        classes=plan.classes,
        splits={
            split.name: SplitRecord(
                images=sum(split.counts), bytes=split.bytes, counts=split.counts
            )
            for split in plan.splits
        },
        bad={rows[i].key: rows[i].bad for i in plan.bad[:_MAX_LISTED]},
        bad_count=len(plan.bad),
        passed_over=passed_over,
        duplicates=total_copies(plan.copies),
        duplicate_keys=tuple(
            tuple(rows[i].key for i in group.rows[:8]) for group in plan.copies[:_MAX_LISTED]
        ),
        near_duplicates=len(plan.near) if near else None,
        near_duplicate_keys=tuple((rows[a].key, rows[b].key) for a, b in plan.near[:_MAX_LISTED]),
        resized=sum(rows[i].resized for i in packed),
        bytes_before=sum(rows[i].original_bytes for i in packed),
        digest=_digest(plan),
    )


def _digest(plan: SetPlan) -> str:
    digest = hashlib.sha256()
    for split in plan.splits:
        for i in (i for shard in split.shards for i in shard):
            row = plan.rows[i]
            line = f"{split.name}\0{row.key}\0{plan.labels[i]}\0{row.content}\n"
            digest.update(line.encode(errors="surrogatepass"))
    return digest.hexdigest()


def read_dataset_record(store: Store) -> DatasetRecord | None:
    """Return the record beside an index; None if there is none, or if it is damaged."""
    try:
        return get_json(store, DATASET_NAME, DatasetRecord)
    except ObjectMissing:
        return None
