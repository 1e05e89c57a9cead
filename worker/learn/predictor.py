"""The forward pass of a finished model, the same to the last digit on any number of threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from worker.learn.training_step import autocast
from worker.model.backbone import logits_of
from worker.numbers import ceil_div

_IMAGES_PER_THREAD = 4

Output = tuple[Tensor, Tensor | None]


class Predictor:
    """The logits of a model and, if asked for, the features that its head gets.

    On the CPU, threads compute a few images each, with one thread: were all threads to share each
    operation, its last digits would depend on their number. On a GPU, a batch is computed in parts
    that are halved until they fit into memory.

    Args:
        model: The model, on its device and in evaluation mode.
        precision: Dtype of the forward pass; None for fp32.
        head: Dotted name of the head, to return the features too; None to return none.
    """

    def __init__(
        self, model: nn.Module, precision: torch.dtype | None, head: str | None = None
    ) -> None:
        self._model = model
        self._precision = precision
        self._device = next(model.parameters()).device
        self._size: int | None = None
        self._seen = threading.local()  # features of the pass that a thread is in
        self._pool: ThreadPoolExecutor | None = None
        if self._device.type == "cpu":
            threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(threads, "predict", torch.set_num_threads, (1,))
        self._hook = head and model.get_submodule(head).register_forward_pre_hook(self._see)

    def __call__(self, images: Tensor) -> Output:
        """Return logits, [N, classes], and features, [N, D].

        Raises `OutOfMemoryError` if a single image does not fit.
        """
        if self._pool:
            return _joined(list(self._pool.map(self._pass, images.split(_IMAGES_PER_THREAD))))
        while True:
            size = max(1, min(self._size or len(images), len(images)))
            try:
                return _joined([self._pass(part) for part in images.split(size)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the `except` block: inside it, the traceback keeps the failed pass's
            # activations alive, so nothing could be freed.
            self._size = ceil_div(size, 2)
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Leave the model as it was, and end the threads."""
        if self._hook:
            self._hook.remove()
        if self._pool:
            self._pool.shutdown()

    def _pass(self, images: Tensor) -> Output:
        # The modes are those of a thread.
        with torch.inference_mode(), autocast(self._precision, self._device):
            logits, _ = logits_of(self._model(images))
        features: Tensor | None = getattr(self._seen, "features", None)
        return logits, features

    def _see(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0]
        # A convolutional head, as SqueezeNet's, has a map of features: their mean, [N, D].
        self._seen.features = features.flatten(2).mean(2) if features.dim() > 2 else features


def _joined(parts: list[Output]) -> Output:
    logits = torch.cat([logits for logits, _ in parts])
    features = [features for _, features in parts if features is not None]
    return logits, torch.cat(features) if features else None
