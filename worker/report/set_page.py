"""The page and the text about a data set: facts, classes, and contact sheets."""

from worker.charts import bar, table
from worker.ingest.read_set import ShownSet
from worker.logs import count
from worker.report.render_page import render

_MIB = 1 << 20
_MAX_CLASSES = 100


def describe_set(shown: ShownSet) -> str:
    """Return the facts about a data set and its largest classes, with a bar each, as text."""
    width = max(len(name) for name, _ in _facts(shown))
    lines = [f"{name:<{width}}  {text}" for name, text in _facts(shown)]
    totals = [sum(counts) for counts in zip(*(s.counts for s in shown.splits), strict=True)]
    order = sorted(range(len(totals)), key=lambda label: -totals[label])[:_MAX_CLASSES]
    head = ["class", *(split.name or "images" for split in shown.splits), ""]
    rows = [
        [
            shown.splits[0].index.classes[label],
            *(f"{split.counts[label]:,}" for split in shown.splits),
            bar(totals[label] / max(1, max(totals)), 20),
        ]
        for label in order
    ]
    return "\n".join([*lines, "", *(line.rstrip() for line in table([head, *rows]))])


def set_page(shown: ShownSet) -> str:
    """Return the HTML page of a data set, with a contact sheet of each of its first classes."""
    classes = shown.splits[0].index.classes
    record = shown.record
    return render(
        "set.html",
        title=shown.uri.rstrip("/").rpartition("/")[2],
        address=shown.uri,
        facts=_facts(shown),
        head=["class", *(split.name or "images" for split in shown.splits)],
        rows=[
            (name, *(str(split.counts[label]) for split in shown.splits))
            for label, name in enumerate(classes)
        ],
        sheets=[
            (
                name,
                [
                    (split.name, picture)
                    for split in shown.splits
                    for picture in split.pictures.get(name, [])
                ],
            )
            for name in classes[:_MAX_CLASSES]
        ],
        left_out=sorted((record.bad if record else {}).items())[:_MAX_CLASSES],
        duplicates=[" = ".join(keys) for keys in record.duplicate_keys[:50]] if record else [],
        near=[" ~ ".join(keys) for keys in record.near_duplicate_keys[:50]] if record else [],
    )


def _facts(shown: ShownSet) -> list[tuple[str, str]]:
    """Return the facts about a data set, by name."""
    facts = [
        (
            split.name or "images",
            f"{count(split.index.samples, 'image')} of {len(split.index.classes)} classes in "
            f"{count(len(split.index.shards), 'shard')}, "
            f"{sum(shard.bytes for shard in split.index.shards) / _MIB:.1f} MiB",
        )
        for split in shown.splits
    ]
    facts.append(("identity", ", ".join(split.index.identity for split in shown.splits)))
    record = shown.record
    if record is None:
        return facts
    options = ", ".join(f"{name}: {value}" for name, value in record.options.items())
    near = record.near_duplicates
    more = {
        "source": record.source,
        "kind": record.kind,
        "options": options,
        "left out": count(record.bad_count, "bad image") if record.bad_count else "",
        "passed over": ", ".join(count(n, kind) for kind, n in record.passed_over.items()),
        "duplicates": count(record.duplicates, "image") if record.duplicates else "none",
        "near duplicates": "not looked for" if near is None else f"{count(near, 'pair')}",
        "scaled down": count(record.resized, "image") if record.resized else "",
        "made by": f"worker {record.made_by}",
        "digest": record.digest[:16],
    }
    return [*facts, *((name, text) for name, text in more.items() if text)]
