"""The index of finished predictions, which names every part with its size and digest."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import Field

from worker.apply.prediction_files import decode_part
from worker.apply.prediction_plan import INDEX_NAME, PredictionPlan
from worker.errors import DataError
from worker.store import ObjectMissing, Store
from worker.store.json_records import StoredRecord, get_json

_READERS = 8
_MAX_PROBLEMS = 20
_MAX_BYTES = 1 << 30
_Count = Annotated[int, Field(ge=0)]


class PartRecord(StoredRecord):
    """A published part."""

    name: str
    bytes: _Count
    sha256: str
    images: _Count
    bad: _Count


class PredictionIndex(StoredRecord):
    """The parts of a prediction, once all are published."""

    images: _Count
    bad: _Count
    """Images that could not be predicted; their lines say why."""
    classes: dict[str, _Count]
    """Images by their most likely class."""
    parts: tuple[PartRecord, ...]


def read_prediction_index(out: Store) -> PredictionIndex | None:
    """Return the index, or None if it is missing or damaged."""
    try:
        return get_json(out, INDEX_NAME, PredictionIndex, _MAX_BYTES)
    except ObjectMissing:
        return None


def write_prediction_index(
    plan: PredictionPlan, out: Store, beat: Callable[[], None]
) -> PredictionIndex:
    """Write and return the index of a prediction whose parts are all published.

    Args:
        plan: The plan.
        out: The output.
        beat: Called for each part that was read.

    Raises:
        DataError: If a part does not have the images that the plan gives it.
    """
    index, problems = _read_parts(plan, out, beat)
    if problems:
        raise DataError("\n  ".join([f"{out.uri}: parts are not as planned:", *problems]))
    data = json.dumps(index.model_dump(), indent=1).encode()
    out.put_if_absent(INDEX_NAME, data)
    return index


def audit_predictions(plan: PredictionPlan, out: Store) -> list[str]:
    """Return what is wrong with a prediction: images lost or repeated, or parts altered.

    Raises:
        DataError: If it is not finished.
    """
    try:
        index = get_json(out, INDEX_NAME, PredictionIndex, _MAX_BYTES)
    except ObjectMissing:
        raise DataError(f"{out.uri}{INDEX_NAME}: missing; the prediction is not finished") from None
    found, problems = _read_parts(plan, out, lambda: None)
    if index is None:
        return [f"{INDEX_NAME} is damaged", *problems]
    listed = {part.name: part for part in index.parts}
    for part in found.parts:
        if part.name not in listed:
            problems.append(f"{part.name}: not in {INDEX_NAME}")
        elif part != listed[part.name]:
            problems.append(f"{part.name}: differs from {INDEX_NAME}: altered after the end")
    if (index.images, index.bad, index.classes) != (found.images, found.bad, found.classes):
        problems.append(f"{INDEX_NAME}: its totals are not those of the parts")
    return problems


def _read_parts(
    plan: PredictionPlan, out: Store, beat: Callable[[], None]
) -> tuple[PredictionIndex, list[str]]:
    problems: list[str] = []
    parts: list[PartRecord] = []
    classes: Counter[str] = Counter()
    count = len(plan.parts)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, count, _READERS):  # a few at a time, as parts may be large
            numbers = range(start, min(count, start + _READERS))
            for number, data in zip(
                numbers, pool.map(lambda n: _get(out, plan, n), numbers), strict=True
            ):
                beat()
                name = plan.part_name(number)
                if data is None:
                    problems.append(f"{name}: missing")
                    continue
                try:
                    rows = list(decode_part(data, plan.format))
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    problems.append(f"{name}: damaged ({error})")
                    continue
                problems += _wrong(name, plan, number, [key for key, _, _ in rows])
                classes.update(first for _, first, error in rows if not error)
                parts.append(
                    PartRecord(
                        name=name,
                        bytes=len(data),
                        sha256=hashlib.sha256(data).hexdigest(),
                        images=len(rows),
                        bad=sum(bool(error) for _, _, error in rows),
                    )
                )
    index = PredictionIndex(
        images=sum(part.images for part in parts),
        bad=sum(part.bad for part in parts),
        classes=dict(sorted(classes.items())),
        parts=tuple(parts),
    )
    return index, problems[:_MAX_PROBLEMS]


def _wrong(name: str, plan: PredictionPlan, number: int, keys: list[str]) -> list[str]:
    """Return what is wrong with the images of a part."""
    planned = plan.parts[number].images
    if len(keys) != planned:
        return [f"{name}: has {len(keys)} images, but {planned} are planned"]
    (key, most), *_ = Counter(keys).most_common(1) or [("", 0)]
    # Only an index vouches for unique keys: a list may name an image twice, and a tar hold two
    # members of one name.
    return [f"{name}: has {key} {most} times"] if most > 1 and plan.kind == "set" else []


def _get(out: Store, plan: PredictionPlan, number: int) -> bytes | None:
    try:
        return out.get(plan.part_name(number))
    except ObjectMissing:
        return None
