"""What all ranks agree on at every step: flags that count once any rank sets them."""

from dataclasses import astuple, dataclass, fields

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Signals:
    """What a rank has to say beside its step; for each field the highest of all ranks counts."""

    stop: bool = False
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
    """One exchange of signals, which runs beside what lies between `propose` and `result`."""

    def propose(self, signals: Signals) -> None:
        """Begin; to be called by all ranks."""
        self._tensor = torch.tensor([int(value) for value in astuple(signals)], dtype=torch.int32)
        self._work = dist.all_reduce(self._tensor, op=dist.ReduceOp.MAX, async_op=True)

    def result(self) -> Signals:
        """What all ranks have agreed on."""
        self._work.wait()
        names = [field.name for field in fields(Signals)]
        told = dict(zip(names, self._tensor.tolist(), strict=True))
        fault = told.pop("fault")
        return Signals(**{name: bool(flag) for name, flag in told.items()}, fault=fault)


def agree(signals: Signals) -> Signals:
    """An exchange that is waited for."""
    agreement = Agreement()
    agreement.propose(signals)
    return agreement.result()
