"""One optimiser step over a global batch, and exact evaluation, on this rank's share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from worker.data.loader import Batch
from worker.data.mix import Blend, partners_of
from worker.data.plan import keyed_hash
from worker.data.preprocessing import Preprocessing
from worker.model.optimizer import train_mode
from worker.train.distributed import total

_SMALLEST = 2  # BatchNorm cannot train on one image of one pixel
_TOP = 5

Confusion = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Result over the sound samples of the validation set.

    `per_class` is the accuracy within each true class (None for one without samples);
    `top5_accuracy` is None for five classes or fewer.
    """

    loss: float
    accuracy: float
    top5_accuracy: float | None
    per_class: list[float | None]


@dataclass(frozen=True)
class _Inputs:
    """What one step computes on; `weights` is 0 for what only fills up.

    The label of an image counts `own`, that of its partner the rest.
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    weights: Tensor
    own: float


class Engine:
    """The model on its device, under DistributedDataParallel."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        preprocessing: Preprocessing,
        device: torch.device,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._preprocessing = preprocessing
        self._device = device
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        ids = [device.index] if device.type == "cuda" else None
        self._parallel = DistributedDataParallel(model, device_ids=ids)
        train_mode(model)

    def step(
        self, step: int, batch: Batch, global_count: int, blend: Blend | None = None
    ) -> Tensor:
        """Train on this rank's part of global batch `step`, which has `global_count` images.

        The loss is the mean over the global batch, in which a sample that was left out counts as
        none. With a `blend`, the batch is led by the sample before its first. Returns this rank's
        sum of losses, its right answers and its images, float64 [3], on the device.
        """
        # Keyed by step, so that dropout needs no state in a checkpoint.
        torch.manual_seed(int(keyed_hash(self._seed, step, self._rank)[0]) >> 1)
        inputs = self._inputs(batch, blend)
        with self._autocast():
            outputs = self._parallel(inputs.images).float()
        losses = F.cross_entropy(outputs, inputs.labels, reduction="none")
        if inputs.own < 1:
            others = F.cross_entropy(outputs, inputs.partners, reduction="none")
            losses = losses * inputs.own + others * (1 - inputs.own)
        losses = losses * inputs.weights
        # DistributedDataParallel takes the mean over ranks, which may hold unequal parts.
        (losses.sum() * self._world_size / global_count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        right = ((outputs.argmax(1) == inputs.labels) * inputs.weights).sum()
        counts = right.double(), inputs.weights.sum().double()
        return torch.stack([losses.detach().sum().double(), *counts])

    def evaluate(
        self, batches: Iterable[Batch], classes: int, stopped: Callable[[], bool]
    ) -> tuple[Evaluation, Confusion] | None:
        """Evaluate each image once over all ranks; None for all if any of them was `stopped`.

        The confusion matrix is int64 [classes, classes], true by predicted.
        """
        # Each rank has its own BatchNorm statistics; those of rank 0 are what is saved.
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            for batch in batches:
                if stopped():
                    break
                images = batch.images.to(self._device, non_blocking=True)[batch.valid]
                labels = batch.labels[batch.valid]
                outputs = self.model(self._preprocessing.normalise(images)).float()
                here = labels.to(self._device)
                best = outputs.topk(min(_TOP, classes)).indices
                sums[0] += F.cross_entropy(outputs, here, reduction="sum")
                sums[1] += (best == here[:, None]).sum()
                pairs = labels * classes + best[:, 0].cpu()
                confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))
        train_mode(self.model)
        dist.all_reduce(confusion)
        interrupted, loss, top5 = total(float(stopped()), *sums.tolist())
        return None if interrupted else (_evaluation(confusion, loss, top5), confusion.numpy())

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda")

    def _inputs(self, batch: Batch, blend: Blend | None) -> _Inputs:
        """The sound images and labels on the device; too few get images of weight 0."""
        images = self._preprocessing.normalise(batch.images.to(self._device, non_blocking=True))
        labels = partners = batch.labels.to(self._device, non_blocking=True)
        valid = batch.valid
        if blend and len(valid):
            others = partners_of(valid)
            images = blend.apply(images[1:], images[others])
            labels, partners, valid = labels[1:], labels[others], valid[1:]
        if not valid.all():
            images, labels, partners = images[valid], labels[valid], partners[valid]
        count = len(labels)
        weights = torch.ones(max(count, _SMALLEST), device=self._device)
        if count < _SMALLEST:
            weights[count:] = 0
            images = torch.cat(
                [images, images if count else images.new_zeros(_SMALLEST, *images.shape[1:])]
            )
            labels, partners = (
                torch.cat([x, x if count else x.new_zeros(_SMALLEST)]) for x in (labels, partners)
            )
        return _Inputs(images, labels, partners, weights, blend.own if blend else 1.0)


def _evaluation(confusion: Tensor, loss: float, top5: float) -> Evaluation:
    count, of_class = max(1, int(confusion.sum())), confusion.sum(1).tolist()
    right = confusion.diagonal().tolist()
    return Evaluation(
        loss=loss / count,
        accuracy=sum(right) / count,
        top5_accuracy=top5 / count if len(right) > _TOP else None,
        per_class=[r / n if n else None for r, n in zip(right, of_class, strict=True)],
    )
