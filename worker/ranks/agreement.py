"""The agreement of all ranks at every step: flags that count once any rank sets them."""

from dataclasses import astuple, dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from worker.ranks.device_transfer import Readout


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The flags of a rank; of each field, the highest of all ranks counts."""

    stop: bool = False
    """Whether a signal asks to stop."""
    bad: bool = False
    """A sample of the batch was bad."""
    due: bool = False
    """The time for a checkpoint has come."""
    report: bool = False
    """It is time to report on the steps."""
    flushing: bool = False
    """Records that lead to a checkpoint are still being written."""
    saving: bool = False
    """A checkpoint is under way."""
    late: bool = False
    """The time left for a stop is over, or too short for what it was asked for."""
    fault: int = 0
    """The exit code of what went wrong beside the training, 0 for nothing."""


class Agreement:
    """Exchanges of signals, one at a time, each beside what lies between `propose` and `result`.

    Between GPUs by NCCL, right behind the gradients of the step before: among hosts a ring of
    thousands would take longer than a step (0.1 ms per rank). The host waits for it no longer than
    for those gradients.

    Args:
        device: The device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._alone = dist.get_world_size() == 1
        self._device = device
        on_gpu = device.type == "cuda" and not self._alone
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def propose(self, signals: Signals) -> None:
        """Begin; to be called by all ranks."""
        flags = torch.tensor([int(value) for value in astuple(signals)], dtype=torch.int32)
        if self._stream:
            with torch.cuda.stream(self._stream):
                flags = flags.pin_memory().to(self._device, non_blocking=True)
                self._reduce(flags)
                self._wait()  # the stream does, not the host
                self._readout = Readout(flags)
        else:
            self._reduce(flags)
            self._flags = flags

    def result(self) -> Signals:
        """Return what all ranks have agreed on."""
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
    """An exchange that is waited for, among the hosts, whose devices may be busy."""
    agreement = Agreement(torch.device("cpu"))
    agreement.propose(signals)
    return agreement.result()
