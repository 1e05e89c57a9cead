"""Transfers to and from a device that do not wait for the work queued on it.

On the CPU, all work is done by the time a call returns, so there is nothing to wait for.
"""

import torch
from torch import Tensor


class Mark:
    """A mark at the end of the work queued on a device so far."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            # Blocking: a spinning thread would take a core from the threads that decode.
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()

    def wait(self) -> None:
        """Wait until the device has passed this point."""
        if self._event:
            self._event.synchronize()


class Readout:
    """Numbers that are being copied from a device to the host."""

    def __init__(self, values: Tensor) -> None:
        # With `non_blocking`, `to` copies to page-locked memory, where the numbers must not be read
        # before the mark has been passed.
        self._values = values.to("cpu", non_blocking=True)
        self._mark = Mark(values.device)

    def read(self) -> list[float]:
        """Wait for the copy and return the numbers."""
        self._mark.wait()
        values: list[float] = self._values.tolist()
        return values


class Uploader:
    """Copier of tensors to a device, on a separate stream in parallel with the previous step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device; work queued there from now on sees the finished copy.

        A page-locked tensor may be overwritten only once the device has passed this point.
        """
        if not self._stream:
            return tensor.to(self.device)
        with torch.cuda.stream(self._stream):
            copied = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        # The memory belongs to the copying stream: without this, the allocator could reuse it for
        # the next copy while the current stream still reads it.
        copied.record_stream(current)
        return copied

    def index(self, index: Tensor) -> Tensor:
        """Copy a small tensor in pageable memory, such as an index, to the device."""
        # A copy from pageable memory may block the host.
        return self(index.pin_memory() if self._stream else index)
