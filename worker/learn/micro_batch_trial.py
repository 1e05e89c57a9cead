"""A trial of how many images of a batch fit into the GPU's memory at once."""

import itertools
import logging
from collections.abc import Callable

import torch

from worker.errors import ConfigurationError
from worker.learn.step_inputs import Inputs
from worker.numbers import ceil_div

log = logging.getLogger(__name__)


def largest_that_fits(
    inputs: Inputs,
    size: int,
    *,
    attempt: Callable[[Inputs], object],
    reset: Callable[[], None],
    rank: int,
) -> int:
    """The size of a micro-batch, halved from `size` until one goes through.

    Args:
        inputs: A rank's share of a batch.
        size: How many of its images are tried first.
        attempt: Forward and backward of a part of the inputs.
        reset: Undoes what attempts have left in the model.
        rank: This rank, for the log.

    Raises:
        ConfigurationError: Not even one image fits.
    """
    while True:
        try:
            # Two parts, as the second meets the gradients of the first in memory.
            for part in itertools.islice(inputs.split(ceil_div(len(inputs.labels), size)), 2):
                attempt(part)
            reset()
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise ConfigurationError(
                    "data.image_size: the GPU's memory does not hold one image; "
                    "take a smaller size or backbone"
                ) from None
        size = ceil_div(size, 2)
        log.warning(
            "rank %d is out of memory; it continues in micro-batches of %d images", rank, size
        )
        reset()
        torch.cuda.empty_cache()
