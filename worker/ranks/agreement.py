"""Agreement of all ranks at every step on flags that take effect once any rank sets them."""

from dataclasses import astuple, dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from worker.ranks.device_transfer import Readout


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The flags of a rank; for each field, the maximum over all ranks applies."""

    stop: bool = False
    """Whether a signal has requested a stop."""
    bad: bool = False
    """Whether a sample of the batch was bad."""
    due: bool = False
    """Whether a checkpoint is due."""
    report: bool = False
    """Whether a report on the steps is due."""
    flushing: bool = False
    """Whether records that a checkpoint needs are still being written."""
    saving: bool = False
    """Whether a checkpoint is being saved."""
    late: bool = False
    """Whether the time allowed for a stop has run out, or is too short to write a checkpoint."""
    fault: int = 0
    """Exit code of a failure outside the training loop; 0 for none."""


class Agreement:
    """Exchanges of signals, one at a time, that overlap with work between `propose` and `result`.

    GPUs exchange signals over NCCL, right after the gradients of the previous step. If the
    hosts exchanged them instead, a ring of thousands of ranks would take longer than a step (0.1 ms
    per rank). The host waits for the signals no longer than for those gradients.

    Args:
        device: The device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._alone = dist.get_world_size() == 1
        self._device = device
        on_gpu = device.type == "cuda" and not self._alone
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def propose(self, signals: Signals) -> None:
        """Start an exchange; all ranks must call this."""
        # One tensor of integers, so that a single all-reduce covers the flags and the exit code.
        flags = torch.tensor([int(value) for value in astuple(signals)], dtype=torch.int32)
        if self._stream:
            # On a stream of its own: on the default stream, the read-out would wait for all work
            # queued there, including the step in progress.
            with torch.cuda.stream(self._stream):
                flags = flags.pin_memory().to(self._device, non_blocking=True)
                self._reduce(flags)
                self._wait()  # blocks the stream, not the host
                self._readout = Readout(flags)
        else:
            self._reduce(flags)
            self._flags = flags

    def result(self) -> Signals:
        """Wait for the exchange and return the signals agreed on."""
        if self._stream:
            flags = [int(flag) for flag in self._readout.read()]
        else:
            self._wait()
            flags = self._flags.tolist()
        told = dict(zip([field.name for field in fields(Signals)], flags, strict=True))
        fault = told.pop("fault")
        return Signals(**{name: bool(flag) for name, flag in told.items()}, fault=fault)

    def _reduce(self, flags: Tensor) -> None:
        self._work = None
        if not self._alone:
            self._work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)

    def _wait(self) -> None:
        if self._work:
            self._work.wait()


def agree(signals: Signals) -> Signals:
    """Exchange signals between hosts, whose devices may be busy, and wait for the result."""
    agreement = Agreement(torch.device("cpu"))
    agreement.propose(signals)
    return agreement.result()
