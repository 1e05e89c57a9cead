"""An attempt as one rank works with it: how it commits and stops."""

import dataclasses
from dataclasses import dataclass
from typing import NoReturn

from worker.checkpoint.training_state import State
from worker.data.loader import Bad
from worker.errors import DataError, StopRequested
from worker.job.job import Job
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.ranks.agreement import agree
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog
from worker.record.journal import Journal
from worker.record.sample_ledger import Recorder
from worker.train.bad_samples import Quarantine
from worker.train.durable_state import DurableState


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A rank of an attempt; its methods are called by all ranks together."""

    job: Job
    """The job."""
    rank: Rank
    """This rank."""
    stop: StopFlag
    """Signals."""
    metrics: Metrics
    """Its metrics."""
    learner: Learner
    """What is trained."""
    durable: DurableState
    """The state, and its checkpoints."""
    recorder: Recorder
    """The ledger of samples."""
    journal: Journal
    """The history."""
    watchdog: Watchdog
    """Ends the rank if it hangs."""

    @property
    def state(self) -> State:
        """Return the part of the state that is saved besides tensors."""
        return self.durable.state

    @property
    def leads(self) -> bool:
        """Whether this rank leads: it writes and logs for all."""
        return self.rank.leads

    def save(self) -> None:
        """Begin to save, after the save that may be under way."""
        self.drain()
        self.begin_save()

    def begin_save(self) -> None:
        """Begin to save; none may be under way."""
        write_samples = self.recorder.take(self.state.step)

        def write() -> None:
            write_samples()
            self.journal.flush()

        self.durable.save(write)

    def drain(self) -> None:
        """Wait for the save that is under way; raises `StopRequested` where a stop cannot wait."""
        if not self.durable.drain():
            self.end_on_request()

    def commit(self) -> None:
        """Save, and wait until it is committed."""
        self.save()
        self.drain()

    def end_on_request(self, where: str = "") -> NoReturn:
        """Commit as far as the time that is left allows, and raise `StopRequested`.

        A save that is under way is waited for. One of the state as it is now follows if the last
        one did not take longer than is left then.
        """
        durable, stop = self.durable, self.stop
        if durable.drain() and not durable.is_saved:
            late = self.leads and durable.seconds > stop.remaining()
            if not agree(dataclasses.replace(durable.signals(), late=late)).late:
                self.begin_save()
                durable.drain()
        lost = self.state.step - durable.committed
        if not self.leads:
            raise StopRequested("")
        if lost:
            raise StopRequested(
                f"stopped on request after step {self.state.step}; the time left was too short for "
                f"a checkpoint, so the one of step {durable.committed} stands and {lost} steps are "
                "lost; start again to resume"
            )
        raise StopRequested(
            f"stopped on request after step {self.state.step}, "
            f"committed by attempt {durable.attempt}{where}; start again to resume"
        )

    def list_bad(self, quarantine: Quarantine, fresh: list[Bad]) -> None:
        """List what any rank has found bad, in the metrics and the record, too."""
        quarantine.exchange(fresh, self.metrics, warn=self.leads)
        self.metrics.budget_used().set(quarantine.budget_used)
        if self.leads:
            quarantine.write(self.job.output, self.durable.attempt)

    def require_budget(self, quarantine: Quarantine) -> None:
        """Commit and raise `DataError` where more is bad than the budget allows."""
        excess = quarantine.excess()
        if excess:
            self.commit()
            raise DataError(excess if self.leads else "")
