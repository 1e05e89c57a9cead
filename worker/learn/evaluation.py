"""Exact evaluation: each image once, over all ranks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from worker.data.loader import Batch
from worker.data.preprocessing import Preprocessing
from worker.learn.confusion import Pairs, Rows, by_class, gather_rows
from worker.learn.training_step import autocast
from worker.learn.worst_images import Mistake, Worst
from worker.model.backbone import logits_of
from worker.model.learner import Learner
from worker.numbers import ceil_div
from worker.ranks.device_transfer import Mark, Uploader
from worker.ranks.process_group import total

_TOP = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result over the valid samples of the validation set."""

    loss: float | None
    """Mean loss; None if it is not finite."""
    accuracy: float
    """Top-1 accuracy."""
    top5_accuracy: float | None
    """Top-5 accuracy; None for five classes or fewer."""
    per_class: list[float | None]
    """Accuracy within each true class; None for a class without samples."""


def evaluate(
    learner: Learner,
    batches: Iterable[Batch],
    *,
    preprocessing: Preprocessing,
    classes: int,
    stopped: Callable[[], bool],
) -> tuple[Evaluation, Rows, list[Mistake]] | None:
    """Evaluate the model that would be saved; return None on all ranks if any has `stopped`.

    The rows are those of the confusion matrix (see `worker.learn.confusion`): rank 0 gets those of
    all ranks, any other rank only its own. The mistakes are those of this rank. The model is left
    in evaluation mode.

    Args:
        learner: The learner to evaluate.
        batches: This rank's share of the images.
        preprocessing: Settings for normalizing the images.
        classes: Number of classes.
        stopped: Returns whether to stop early.
    """
    model = learner.result
    device = next(model.parameters()).device
    _share_buffers(model)
    upload = Uploader(device)
    pairs = Pairs(classes)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    worst = Worst()
    model.eval()
    before: Mark | None = None
    logits = _Logits(model)
    with torch.inference_mode(), autocast(learner, device):
        # No collective runs in this loop: ranks may have different numbers of batches, and when
        # stopped, they may leave it after different batches.
        for batch in batches:
            if stopped():
                break
            images, labels, ids = _sound(batch, upload)
            outputs = logits(preprocessing.normalize(images))
            best = outputs.topk(min(_TOP, classes)).indices
            losses = F.cross_entropy(outputs, labels, reduction="none")
            sums[0] += losses.sum()
            # A label matches at most one of the columns, so this counts images.
            sums[1] += (best == labels[:, None]).sum()
            pairs.add(labels, best[:, 0])
            worst.add(losses=losses, ids=ids, logits=outputs, labels=labels, images=images)
            # Keep the device busy with this batch while the host waits for the previous one.
            if before:
                before.wait()
            before = Mark(device)
    rows = pairs.rows()
    counts = torch.from_numpy(by_class(rows, classes))
    dist.all_reduce(counts)
    # Summed over ranks, so that all of them return None if any has stopped.
    interrupted, loss, top5 = total(float(stopped()), *sums.tolist())
    if interrupted:
        return None
    return _evaluation(counts, loss, top5), gather_rows(rows), worst.found()


def _share_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's BatchNorm statistics, which are the ones saved, to all ranks."""
    if dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _sound(batch: Batch, upload: Uploader) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images (uint8), labels and ids of a batch's valid samples, on the device."""
    images, labels = upload(batch.images), upload(batch.labels)
    ids = upload.index(torch.from_numpy(batch.ids))
    if batch.valid.all():
        return images, labels, ids
    kept = upload.index(batch.valid.nonzero().flatten())
    return images[kept], labels[kept], ids[kept]


class _Logits:
    """Logits of a model, computed in parts that are halved until they fit into GPU memory."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._size: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, [N, classes]; raise `OutOfMemoryError` if a single image does not fit."""
        while True:
            size = max(1, min(self._size or len(images), len(images)))
            try:
                parts = [logits_of(self._model(part))[0] for part in images.split(size)]
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the `except` block: inside it, the traceback keeps the failed pass's
            # activations alive, so nothing could be freed.
            self._size = ceil_div(size, 2)
            torch.cuda.empty_cache()


def _evaluation(counts: Tensor, loss: float, top5: float) -> Evaluation:
    count = max(1, int(counts[0].sum()))
    of_class, right = counts.tolist()
    return Evaluation(
        loss=loss / count if math.isfinite(loss) else None,
        accuracy=sum(right) / count,
        top5_accuracy=top5 / count if len(right) > _TOP else None,
        per_class=[r / n if n else None for r, n in zip(right, of_class, strict=True)],
    )
