"""A rank's share of a prediction: it takes parts that nobody has published yet, until none is left.

The store is the only thing that ranks have in common: the results of a part are published by one
conditional PUT, so that any number of processes may come and go. Two of them may work on the same
part, at worst; the first to publish it counts, and both have the same results.
"""

import contextlib
import io
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.apply.prediction_files import PartWriter, Prediction
from worker.apply.prediction_plan import PREDICTIONS, PredictionPlan
from worker.data.batch_requests import Request
from worker.data.loader import Batch
from worker.errors import StopRequested
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders
from worker.learn.predictor import Predictor
from worker.model.classifier import Classifier
from worker.model.learner import precision_on
from worker.ranks.device_transfer import Uploader
from worker.ranks.rank import Rank
from worker.store import Store
from worker.text import printable

log = logging.getLogger(__name__)

NAME = "images"
"""The name of the set of images in requests."""
_LOOK_SECONDS = 10.0


class _Taken(Exception):
    """Another process has published the part meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The plan of a prediction, and a rank's place in it."""

    plan: PredictionPlan
    """The plan."""
    out: Store
    """The output."""
    rank: Rank
    """This rank."""
    stopped: Callable[[], bool]
    """Returns whether a stop was requested."""
    advance: Callable[[int, int], None]
    """Called for each batch with the number of its images and of the bad ones among them."""
    published: Callable[[int], None]
    """Called with the number of parts that are known to be done."""


class PartQueue:
    """The parts that are left, as far as this rank knows.

    Args:
        plan: The plan.
        out: The output.
        rank: This rank.
    """

    def __init__(self, plan: PredictionPlan, out: Store, rank: Rank) -> None:
        self._plan = plan
        self._out = out
        self._rank = rank
        self._looked = 0.0
        self.done: set[int] = set()
        """The parts that are published."""
        self._chance = random.Random()  # noqa: S311 -- spreads starters that know nothing of another
        self.look()

    def look(self) -> None:
        """List the results that are published."""
        names = (info.key for info in self._out.list(PREDICTIONS))
        self.done |= {n for n in map(self._plan.number_of, names) if n is not None}
        self._looked = time.monotonic()

    def is_done(self, number: int) -> bool:
        """Return whether a part is published, by a listing that is a few seconds old at most."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self.look()
        return number in self.done

    def take(self) -> int | None:
        """Return a part that is left: of this rank's own, if any, and else of the others'."""
        count = len(self._plan.parts)
        left = [number for number in range(count) if number not in self.done]
        if not left:
            return None
        own = [n for n in left if n % self._rank.world_size == self._rank.rank]
        if not own:  # others may have finished theirs meanwhile
            self.look()
            left = [number for number in left if number not in self.done]
        return self._chance.choice(own or left) if own or left else None


def predict_parts(classifier: Classifier, loaders: Loaders[EvaluationFeed], share: Share) -> None:
    """Predict and publish parts until all of them are published.

    Args:
        classifier: The model, on its device.
        loaders: The source of batches, started.
        share: The plan and this rank's place in it.

    Raises:
        StopRequested: If a stop was requested; the parts that are published stay.
        WorkerError: If the images cannot be read, or the results cannot be written.
    """
    queue = PartQueue(share.plan, share.out, share.rank)
    starts = np.cumsum([0, *(part.images for part in share.plan.parts)]).tolist()
    model = _Model(classifier, embeddings=share.plan.embeddings)
    while True:
        share.published(len(queue.done))
        number = queue.take()
        if number is None:
            return
        ids = range(starts[number], starts[number + 1])
        with contextlib.suppress(_Taken):
            _predict_part(model, loaders, share, number=number, ids=ids, queue=queue)
        queue.done.add(number)


def _predict_part(
    model: "_Model",
    loaders: Loaders[EvaluationFeed],
    share: Share,
    *,
    number: int,
    ids: range,
    queue: PartQueue,
) -> None:
    plan, out = share.plan, share.out
    names = model.classifier.card.classes
    writer = PartWriter(plan.format, names, plan.classes_per_image(len(names)))
    features: list[npt.NDArray[np.float32]] = []
    request = Request(dataset=NAME, samples=ids, keyed=True)
    with contextlib.closing(loaders.batches(request)) as batches:
        for found, rows in model.predict(_watched(batches, share, number, queue), plan.top):
            writer.add(found)
            features += [rows] if rows is not None else []
    if plan.embeddings:
        # First, as the results tell that the part is done. Who loses this race has the same bytes.
        buffer = io.BytesIO()
        vectors = np.concatenate(features) if features else np.empty((0, 0), np.float32)
        np.save(buffer, vectors, allow_pickle=False)
        out.put_if_absent(plan.embeddings_name(number), buffer.getvalue())
    if not out.put_if_absent(plan.part_name(number), writer.finish()):
        log.info("part %d has meanwhile been published by another process", number)


def _watched(
    batches: Iterable[Batch], share: Share, number: int, queue: PartQueue
) -> Iterator[Batch]:
    """Yield the batches of a part unless it is no longer wanted."""
    for batch in batches:
        if share.stopped():
            raise StopRequested(
                f"stopped on request; {len(queue.done)} of {len(share.plan.parts)} parts are "
                "published; start again to predict the rest"
            )
        if queue.is_done(number):
            raise _Taken
        yield batch
        share.advance(len(batch.ids), len(batch.bad))


class _Model:
    """The model, with what it says about batches of images."""

    def __init__(self, classifier: Classifier, *, embeddings: bool) -> None:
        self.classifier = classifier
        self._device = next(classifier.model.parameters()).device
        head = classifier.card.head if embeddings else None
        self._predictor = Predictor(classifier.model, precision_on(self._device, "auto"), head)

    def predict(
        self, batches: Iterable[Batch], top: int | None
    ) -> Iterator[tuple[list[Prediction], npt.NDArray[np.float32] | None]]:
        """Yield the predictions and, if they are wanted, the features of each batch.

        Bad samples keep their place, so that a batch has the same shape whatever is wrong with it.
        """
        card = self.classifier.card
        upload = Uploader(self._device)
        count = min(top or len(card.classes), len(card.classes))
        waiting: tuple[Batch, Tensor, Tensor, Tensor | None] | None = None
        for batch in batches:
            with torch.inference_mode():
                images = card.preprocessing.normalize(upload(batch.images))
                logits, features = self._predictor(images)
                chances, labels = (logits.float() / card.temperature).softmax(1).topk(count)
            # Read one batch late, so that the device is busy while the host waits for the last one.
            if waiting:
                yield self._read(*waiting)
            waiting = (_copy(batch), chances, labels, features)
        if waiting:
            yield self._read(*waiting)

    def _read(
        self, batch: Batch, chances: Tensor, labels: Tensor, features: Tensor | None
    ) -> tuple[list[Prediction], npt.NDArray[np.float32] | None]:
        names, problems = self.classifier.card.classes, {bad.id: bad.text for bad in batch.bad}
        valid = batch.valid.tolist()
        found = []
        for place, (row, of_row) in enumerate(zip(chances.tolist(), labels.tolist(), strict=True)):
            number = int(batch.ids[place])
            error = "" if valid[place] else printable(problems.get(number, "cannot be used"))
            if not error and not all(map(math.isfinite, row)):
                error = "the prediction is not finite"
            classes = () if error else tuple(zip((names[n] for n in of_row), row, strict=True))
            found.append(Prediction(batch.keys[place], classes, error))
        if features is None:
            return found, None
        vectors = features.float().cpu().numpy()
        vectors[~batch.valid.numpy()] = np.nan
        return found, vectors


def _copy(batch: Batch) -> Batch:
    """Return a batch without images, whose memory does not belong to the loader."""
    return Batch(
        images=batch.images[:0],
        labels=batch.labels[:0],
        ids=batch.ids.copy(),
        valid=batch.valid.clone(),
        bad=list(batch.bad),
        keys=dict(batch.keys),
    )
