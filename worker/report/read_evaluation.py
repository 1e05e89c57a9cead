"""Reader of an evaluation's records."""

import logging
from dataclasses import dataclass

from worker.judge.judgment import Judgment, judge
from worker.judge.paired import Outcomes
from worker.judge.tally import Tally
from worker.judge.tally_file import decode_tally
from worker.layout import EVALUATION
from worker.record.read_records import read_or_skip
from worker.report.record_schemas import PictureLists
from worker.store import ObjectMissing, Store

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class ShownEvaluation:
    """An evaluation, as its records have it."""

    step: int
    """The step after which it ran."""
    tally: Tally
    """Its sums."""
    outcomes: Outcomes
    """Whether each image was predicted correctly, by sample id."""
    judgment: Judgment
    """Its figures, before calibration if it is a validation."""
    pictures: PictureLists
    """The images to look at."""


def read_evaluation(
    store: Store, names: list[str], split: str, *, step: int | None, classes: tuple[str, ...]
) -> ShownEvaluation | None:
    """Read the records of an evaluation; return None if there are none, or they are damaged.

    Args:
        store: The output of the run.
        names: The names of all records, in the order of attempts.
        split: The data set: `val` or `test`.
        step: The step that is wanted, if it is there; otherwise the last one is taken.
        classes: Names of the classes, in label order.
    """
    found: dict[int, dict[str, str]] = {}
    for name in names:  # in attempt order, so that the newest evaluation of a step wins
        match = EVALUATION.fullmatch(name)
        if match and match[2] == split:
            found.setdefault(int(match[3]), {})[match[4]] = name
    shown = step if step in found else max(found, default=None)
    if shown is None or "npz" not in found[shown]:
        return None
    read = _read_tally(store, found[shown]["npz"], len(classes))
    if read is None:
        return None
    tally, outcomes = read
    listed = None
    if "json" in found[shown]:
        listed = read_or_skip(store, found[shown]["json"], PictureLists)
    return ShownEvaluation(
        step=shown,
        tally=tally,
        outcomes=outcomes,
        judgment=judge(tally, classes),
        # The plan may be another one, and the page shows images by class name.
        pictures=(listed or PictureLists()).of_classes(len(classes)),
    )


def _read_tally(store: Store, name: str, classes: int) -> tuple[Tally, Outcomes] | None:
    try:
        return decode_tally(store.get(name, 0, _MAX_BYTES), classes)
    except ObjectMissing:
        return None
    except ValueError as error:
        log.warning("%s%s: is damaged (%s); skipped", store.uri, name, error)
        return None
