"""Data sets packed in this process."""

from pathlib import Path

from worker.data.index import Index
from worker.ingest.dataset_record import record_of
from worker.ingest.image_check import ImageOptions
from worker.ingest.open_source import SourceOptions, open_source
from worker.ingest.pack import Pack, PackOptions, plan_of
from worker.ingest.planned import PlanOptions
from worker.ingest.splits import SplitOptions


def pack_folder(
    folder: Path | str, dest: str, *, shard_bytes: int = 12_000, workers: int = 1
) -> list[Index]:
    """Pack a source as `worker pack --overwrite` does; return the index of each split."""
    source = open_source(str(folder), SourceOptions())
    options = PackOptions(
        image=ImageOptions(max_pixels=10**8, near=False),
        plan=PlanOptions(split=SplitOptions(), shard_bytes=shard_bytes),
        workers=workers,
        memory=64 << 20,
        overwrite=True,
    )
    packing = Pack(source, dest, options, {})
    packing.read(lambda images, size: None, dry=False)
    units = packing.wait_for_units(lambda text: None)
    assert units is not None
    plan, places = plan_of(units, source, options.plan)
    packing.write(plan, places, lambda images, size: None)
    record = record_of(
        plan,
        pack=packing.identity,
        made_by="",
        source="",
        kind=source.description,
        options={},
        passed_over={},
        near=False,
    )
    return packing.complete(plan, record, lambda text: None)
