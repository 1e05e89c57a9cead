"""Batches for one rank, decoded in its own process: by the caller, or on its GPU."""

from collections.abc import Callable, Generator, Mapping

from worker.data.batch_requests import Request, Work
from worker.data.loader import Batch, Loader


class InProcess:
    """In-process loaders, one per data set.

    Args:
        loaders: Loaders by data set.
        resolve: Expands a request into its batches.
        size: Side of the images, in pixels.
    """

    def __init__(
        self, loaders: Mapping[str, Loader], resolve: Callable[[Request], Work], size: int
    ) -> None:
        self._loaders = loaders
        self._resolve = resolve
        self._size = size

    def batches(self, request: Request) -> Generator[Batch]:
        """Return the batches of a request; see `Batches`."""
        work = self._resolve(request)
        loader = self._loaders[request.dataset]
        size = work.size or self._size
        return loader.batches(work.batches, work.prepare_for, size=size, keyed=request.keyed)

    def close(self) -> None:
        """Stop the threads of the loaders."""
        for loader in self._loaders.values():
            loader.close()
