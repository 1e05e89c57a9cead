"""Moving data to and from a device without waiting for the work that is queued on it.

On the CPU everything is done when the call returns, so there is nothing to wait for.
"""

import torch
from torch import Tensor


class Mark:
    """A point in the work queued on a device so far."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            # Blocking: a thread that spins would take a core from those that decode.
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()

    def wait(self) -> None:
        """Return once the device has come past this point."""
        if self._event:
            self._event.synchronize()


class Readout:
    """Numbers that are on their way from a device to the host."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._mark = Mark(values.device)

    def read(self) -> list[float]:
        """Wait until they are here."""
        self._mark.wait()
        values: list[float] = self._values.tolist()
        return values


class Uploader:
    """Copies to a device, on a stream of its own: beside the step before, not behind it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; what is queued there from now on finds it complete.

        A page-locked tensor may be overwritten only once the device has come past this point.
        """
        if not self._stream:
            return tensor.to(self.device)
        with torch.cuda.stream(self._stream):
            copied = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied

    def index(self, index: Tensor) -> Tensor:
        """The same for a small tensor in ordinary memory, such as an index."""
        return self(index.pin_memory() if self._stream else index)
