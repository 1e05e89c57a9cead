"""One optimiser step over a global batch, and exact evaluation, on this rank's share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from worker.data.decode import Preprocessing
from worker.data.loader import Batch
from worker.data.plan import keyed_hash
from worker.model.optimizer import train_mode
from worker.train.distributed import total

_SMALLEST = 2  # BatchNorm cannot train on one image of one pixel


@dataclass(frozen=True)
class Evaluation:
    """Result over the validation set; `confusion` is [classes, classes], true by predicted."""

    loss: float
    accuracy: float
    confusion: list[list[int]]


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

    def step(self, step: int, batch: Batch, global_count: int) -> Tensor:
        """Train on this rank's part of global batch `step`, which has `global_count` images.

        The loss is the mean over the global batch. Returns this rank's sum of losses and its
        number of right answers, float64 [2], on the device.
        """
        # Keyed by step, so that dropout needs no state in a checkpoint.
        torch.manual_seed(int(keyed_hash(self._seed, step, self._rank)[0]) >> 1)
        images, labels, weights = self._padded(batch)
        with self._autocast():
            outputs = self._parallel(self._preprocessing.normalise(images))
            losses = F.cross_entropy(outputs.float(), labels, reduction="none") * weights
        # DistributedDataParallel takes the mean over ranks, which may hold unequal parts.
        (losses.sum() * self._world_size / global_count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        right = ((outputs.argmax(1) == labels) * weights).sum()
        return torch.stack([losses.detach().sum().double(), right.double()])

    def evaluate(
        self, batches: Iterable[Batch], classes: int, stopped: Callable[[], bool]
    ) -> Evaluation | None:
        """Evaluate each image once over all ranks; None for all if any of them was `stopped`."""
        # Each rank has its own BatchNorm statistics; those of rank 0 are what is saved.
        for buffer in self.model.buffers():
            dist.broadcast(buffer, src=0)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            for batch in batches:
                if stopped():
                    break
                images = batch.images.to(self._device, non_blocking=True)
                labels = batch.labels.to(self._device)
                outputs = self.model(self._preprocessing.normalise(images)).float()
                loss += F.cross_entropy(outputs, labels, reduction="sum")
                pairs = batch.labels * classes + outputs.argmax(1).cpu()
                confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        train_mode(self.model)
        dist.all_reduce(confusion)
        interrupted, loss_sum = total(float(stopped()), loss.item())
        if interrupted:
            return None
        count = int(confusion.sum())
        return Evaluation(loss_sum / count, int(confusion.trace()) / count, confusion.tolist())

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda")

    def _padded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and weights on the device; too small a part gets images of weight 0."""
        images, labels = batch.images, batch.labels
        count = len(images)
        weights = torch.ones(max(count, _SMALLEST))
        weights[count:] = 0
        if count < _SMALLEST:
            size = self._preprocessing.crop_size
            filler = images if count else torch.zeros(_SMALLEST, 3, size, size, dtype=torch.uint8)
            images = torch.cat([images, filler])
            labels = torch.cat(
                [labels, labels if count else torch.zeros(_SMALLEST, dtype=torch.int64)]
            )
        return (
            images.to(self._device, non_blocking=True),
            labels.to(self._device, non_blocking=True),
            weights.to(self._device, non_blocking=True),
        )
