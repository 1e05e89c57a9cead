"""Exact evaluation: each image once, over all ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worker.data.loader import Batch
from worker.data.preprocessing import Preprocessing
from worker.judge.counter import Counter, add_ranks
from worker.judge.paired import RIGHT, WRONG, Outcomes
from worker.judge.tally import Tally
from worker.learn.picked_images import Pick, Picker
from worker.learn.predictor import Predictor
from worker.ranks.device_transfer import Mark, Uploader
from worker.ranks.process_group import total


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of an evaluation over all ranks."""

    tally: Tally
    """The sums over all ranks; on ranks other than 0, the confusion counts are their own."""
    outcomes: Outcomes
    """Whether each image was predicted correctly, over all ranks, by sample id."""
    picks: dict[str, list[Pick]]
    """The images of this rank that a person should look at, by kind."""
    logits: Tensor | None
    """This rank's predictions, float32 [n, classes], if they were asked for."""
    labels: Tensor
    """The classes of these images, int64 [n]."""


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    precision: torch.dtype | None,
    preprocessing: Preprocessing,
    classes: int,
    samples: int,
    stopped: Callable[[], bool],
    temperature: float = 1.0,
    keep_logits: bool = False,
) -> Findings | None:
    """Evaluate a model on each image once; return None on all ranks if any has `stopped`.

    The model is left in evaluation mode.

    Args:
        model: The model.
        batches: This rank's share of the images.
        precision: Dtype of the forward pass; None for fp32.
        preprocessing: Settings for normalizing the images.
        classes: Number of classes.
        samples: Number of images of the data set; sample ids are below it.
        stopped: Returns whether to stop early.
        temperature: What the logits are divided by.
        keep_logits: Whether to return the predictions themselves.
    """
    device = next(model.parameters()).device
    _share_buffers(model)
    upload = Uploader(device)
    counter, picker = Counter(classes, device), Picker()
    kept: list[tuple[Tensor, Tensor]] = []
    outcomes = torch.zeros(samples, dtype=torch.uint8, device=device)
    model.eval()
    before: Mark | None = None
    predict = Predictor(model, precision)
    with torch.inference_mode():
        # No collective runs in this loop: ranks may have different numbers of batches, and when
        # stopped, they may leave it after different batches.
        for batch in batches:
            if stopped():
                break
            images, labels, ids = _sound(batch, upload)
            logits, _ = predict(preprocessing.normalize(images))
            logits = logits.float() / temperature
            counter.add(logits, labels)
            outcomes[ids] = torch.where(logits.argmax(1) == labels, RIGHT, WRONG).byte()
            picker.add(logits=logits, ids=ids, labels=labels, images=images)
            if keep_logits:
                kept.append((logits.cpu(), labels.cpu()))
            # Keep the device busy with this batch while the host waits for the previous one.
            if before:
                before.wait()
            before = Mark(device)
    # Summed over ranks, so that all of them return None if any has stopped.
    if total(float(stopped()))[0]:
        return None
    logits, labels = (
        (torch.cat(parts) for parts in zip(*kept, strict=True))
        if kept
        else (torch.empty(0, classes), torch.empty(0, dtype=torch.int64))
    )
    return Findings(
        tally=add_ranks(counter.own()),
        outcomes=_over_ranks(outcomes),
        picks=picker.found(),
        logits=logits if keep_logits else None,
        labels=labels,
    )


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


def _over_ranks(outcomes: Tensor) -> Outcomes:
    """Return the outcomes of all ranks, which have evaluated different images."""
    outcomes = outcomes.cpu()
    dist.all_reduce(outcomes)
    return outcomes.numpy()
