"""The command line of `worker pack`, translated into the options of the code that packs."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.redaction import redacted

if TYPE_CHECKING:  # these modules take seconds to import
    from worker.ingest.open_source import SourceOptions
    from worker.ingest.pack import PackOptions

_MIB = 1 << 20
_BUDGET = 0.01


class Part(click.ParamType[tuple[int, int]]):
    """A part of a pack, I/N, as its index from 0 and the number of parts."""

    name = "I/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        index, _, total = str(value).partition("/")
        if index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total):
            return int(index) - 1, int(total)
        raise click.BadParameter(
            f"{value!r} is not I/N with I from 1 to N, such as 2/8", ctx, param
        )


def names_in(_: Any, __: Any, values: Sequence[str]) -> tuple[str, ...]:
    """Return the names in all values of an option; a value may hold several, with commas."""
    names = (name.strip() for value in values for name in value.split(","))
    return tuple(filter(None, names))


def source_options(given: dict[str, Any]) -> "SourceOptions":
    """Return how the source is read."""
    from worker.ingest.open_source import SourceOptions
    from worker.ingest.tar_source import load_map

    return SourceOptions(
        image=given["image"],
        label=given["label"],
        split=given["split"],
        group=given["group_by"],
        root=given["root"],
        mapped=load_map(given["mapped"]) if given["mapped"] else None,
        allow_pipe=given["allow_pipe"],
    )


def pack_options(given: dict[str, Any], *, near: bool) -> "PackOptions":
    """Return how images are checked, split and written; if `near`, similar ones are found, too."""
    from worker.data.class_names import read_classes
    from worker.ingest.image_check import ImageOptions
    from worker.ingest.pack import PackOptions
    from worker.ingest.planned import PlanOptions
    from worker.ingest.splits import SplitOptions

    budget = _BUDGET if given["error_budget"] is None else given["error_budget"]
    return PackOptions(
        image=ImageOptions(
            max_pixels=given["max_pixels"],
            longest_side=given["longest_side"],
            quality=given["quality"],
            near=near,
        ),
        plan=PlanOptions(
            split=SplitOptions(
                val=given["val"],
                test=given["test"],
                group_by=given["group_by"],
                seed=given["seed"],
                resplit=given["resplit"],
            ),
            shard_bytes=int(given["shard_size"] * _MIB),
            classes=read_classes(given["classes"]) if given["classes"] else None,
            keep_classes=given["keep_classes"],
            share=given["share"],
            bad_share=budget if given["bad"] == "skip" else None,
            allow_duplicates=given["allow_duplicates"],
        ),
        workers=given["workers"] or len(os.sched_getaffinity(0)),
        memory=given["memory"] * _MIB,
        part=given["part"],
        overwrite=given["overwrite"],
    )


def reading_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that say how the source is read."""
    names = ("image", "label", "split", "root", "mapped", "group_by", "classes")
    told = {name: redacted(given[name]) for name in names if given[name]}
    if given["mapped"]:  # another function body is another pack
        file = getattr(sys.modules.get(given["mapped"].partition(":")[0]), "__file__", None)
        told["map_digest"] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    return told
