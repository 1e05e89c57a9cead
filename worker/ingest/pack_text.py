"""A plan as text: splits, classes, and whatever a person should look at."""

from collections.abc import Mapping, Sequence

from worker.charts import bar, table
from worker.ingest.duplicates import MAX_DISTANCE
from worker.ingest.plan import total_copies
from worker.ingest.planned import SetPlan
from worker.ingest.rows import Row
from worker.logs import count

_MAX_CLASSES = 30
_MAX_LISTED = 10
_MIB = 1 << 20


def describe_plan(plan: SetPlan, *, near: bool) -> str:
    """Return the splits, classes (with a bar each), sizes, duplicates and warnings as text.

    Args:
        plan: The plan.
        near: Whether near duplicates were looked for.
    """
    lines = [
        f"{split.name or 'images'}: {count(sum(split.counts), 'image')} in "
        f"{count(len(split.shards), 'shard')}, {split.bytes / _MIB:.1f} MiB"
        for split in plan.splits
    ]
    lines += ["", *_class_lines(plan), *_size_lines(plan), *_copy_lines(plan, near=near)]
    lines += [f"warning: {line}" for line in plan.warnings]
    return "\n".join(lines)


def _class_lines(plan: SetPlan) -> list[str]:
    totals = [
        sum(split.counts[label] for split in plan.splits) for label in range(len(plan.classes))
    ]
    order = sorted(range(len(totals)), key=lambda label: -totals[label])
    shown = order if len(order) <= _MAX_CLASSES else [*order[:20], *order[-5:]]
    top = max(totals)
    head = ["class", *(split.name or "images" for split in plan.splits), ""]
    rows = [
        [
            plan.classes[label],
            *(f"{split.counts[label]:,}" for split in plan.splits),
            bar(totals[label] / top, 20),
        ]
        for label in shown
    ]
    lines = table([head, *rows])
    if len(shown) < len(order):
        lines.insert(21, f"({len(order) - len(shown)} classes in between)")
    return [line.rstrip() for line in lines]


def _size_lines(plan: SetPlan) -> list[str]:
    rows = [plan.rows[i] for split in plan.splits for shard in split.shards for i in shard]
    sides = sorted(max(row.width, row.height) for row in rows)
    lines = [
        "",
        f"longest sides: {sides[0]} to {sides[-1]} px, median {sides[len(sides) // 2]}",
    ]
    resized = [row for row in rows if row.resized]
    if resized:
        before = sum(row.original_bytes for row in resized)
        after = sum(row.bytes for row in resized)
        lines.append(
            f"scaled down: {count(len(resized), 'image')}, from {before / _MIB:.1f} to "
            f"{after / _MIB:.1f} MiB"
        )
    return lines


def _copy_lines(plan: SetPlan, *, near: bool) -> list[str]:
    lines = []
    if plan.copies:
        lines.append(f"exact duplicates: {count(total_copies(plan.copies), 'image')}")
        lines += [
            "  " + " = ".join(_named(plan, i) for i in group.rows[:4])
            for group in plan.copies[:_MAX_LISTED]
        ]
    if not near:
        lines.append("near duplicates: not looked for; install the package ImageHash")
    elif len(plan.splits) > 1:
        lines.append(
            f"near duplicates across splits: {count(len(plan.near), 'pair')} "
            f"(pHash, up to {MAX_DISTANCE} of 64 bits)"
        )
        lines += [f"  {_named(plan, a)} ~ {_named(plan, b)}" for a, b in plan.near[:_MAX_LISTED]]
    return lines


def _named(plan: SetPlan, i: int) -> str:
    return plan.rows[i].key


def describe_bad(rows: Sequence[Row], bad: Sequence[int]) -> list[str]:
    """Return a line for each image that is left out."""
    return [f"left out: {rows[i].name}: {rows[i].bad}" for i in bad]


def describe_passed_over(kinds: Mapping[str, int]) -> list[str]:
    """Return a line for each kind of entry that is not an image of the set."""
    lines = [f"left out: {count(number, kind)}" for kind, number in sorted(kinds.items()) if number]
    if any(kind.startswith(".") and kind.endswith(" image") for kind in kinds):
        lines.append("convert those images to JPEG, PNG or WebP to have them packed")
    return lines
