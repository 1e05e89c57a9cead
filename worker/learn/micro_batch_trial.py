"""Search for the largest micro-batch that fits into GPU memory."""

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
    """Return the micro-batch size, halved from `size` until a micro-batch fits into memory.

    Args:
        inputs: A rank's share of a batch.
        size: The micro-batch size to try first.
        attempt: Runs the forward and backward pass of a part of the inputs.
        reset: Undoes the effects of `attempt` on the model.
        rank: This rank, for the log.

    Raises:
        ConfigurationError: If not even one image fits.
    """
    while True:
        try:
            # Try two parts, as the gradients of the first are in memory during the second. They are
            # the largest ones, since `tensor_split` puts larger parts first.
            for part in itertools.islice(inputs.split(ceil_div(len(inputs.labels), size)), 2):
                attempt(part)
            reset()
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise ConfigurationError(
                    "data.image_size: not even one image fits into the GPU's memory; "
                    "use a smaller size or backbone"
                ) from None
        # Outside the `except` block, since the traceback keeps the activations of the failed pass
        # alive and `empty_cache` could not free them.
        size = ceil_div(size, 2)
        log.warning(
            "rank %d ran out of memory; it continues with micro-batches of %d images", rank, size
        )
        reset()
        torch.cuda.empty_cache()
