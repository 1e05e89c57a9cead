"""The score from which a class can be trusted: a threshold for each class, and what it costs."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from worker.judge.intervals import share
from worker.judge.measure import Measure
from worker.judge.ranking import Histograms, at_least
from worker.judge.tally import edges
from worker.store.json_records import StoredRecord


class Threshold(StoredRecord):
    """The lowest probability of a class at which its predictions are as precise as demanded."""

    name: str
    """The class."""
    probability: Annotated[float, Field(ge=0, le=1)] | None
    """The threshold; None if no threshold is precise enough."""
    precision: Measure
    """Share of the images at or above the threshold that are of the class."""
    recall: Measure
    """Share of the images of the class that are at or above the threshold."""


def thresholds_for(
    histograms: Histograms, names: Sequence[str], precision: float
) -> tuple[Threshold, ...]:
    """Return a threshold for each class.

    Args:
        histograms: The histograms of the scores; see `worker.judge.ranking`.
        names: Names of the classes, in label order.
        precision: The precision to reach, measured on these images.
    """
    lowest = edges(histograms.shape[2], len(names))
    hits, alarms = at_least(histograms)
    enough = (hits > 0) & (hits >= precision * (hits + alarms))
    found = []
    for label, name in enumerate(names):
        (places,) = np.nonzero(enough[label])
        if not len(places):
            found.append(
                Threshold(name=name, probability=None, precision=Measure(), recall=Measure())
            )
            continue
        place = int(places[0])  # the lowest of them finds the most images
        right, wrong = int(hits[label, place]), int(alarms[label, place])
        found.append(
            Threshold(
                name=name,
                probability=math.floor(1e8 * lowest[place]) / 1e8,  # never above a score in the bin
                precision=share(right, right + wrong),
                recall=share(right, int(hits[label, 0])),
            )
        )
    return tuple(found)
