"""An attempt as one rank works with it: how it commits and stops."""

import time
from dataclasses import dataclass
from typing import NoReturn

from worker.checkpoint.training_state import State
from worker.errors import ExitCode, StopRequested, WorkerError, error_of
from worker.job.job import Job
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.ranks.agreement import Signals, agree
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog
from worker.record.journal import Journal
from worker.record.sample_ledger import Recorder
from worker.train.durable_state import DurableState

_LOOK_SECONDS = 0.5


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

    def signals(
        self, *, bad: bool = False, due: bool = False, report: bool = False, late: bool = False
    ) -> Signals:
        """Return the flags of this rank: those given, and those of a stop and a save."""
        durable = self.durable
        return Signals(
            stop=self.stop.requested,
            flushing=durable.flushing,
            saving=durable.saving,
            fault=_code_of(durable.error),
            bad=bad,
            due=due,
            report=report,
            late=late,
        )

    def advance(self, agreed: Signals) -> None:
        """Continue a save as far as all ranks have come.

        Raises on every rank what went wrong on one: `Superseded` if a newer attempt has started,
        `InfrastructureError` if the store gave up.
        """
        if agreed.fault:
            error = self.durable.error
            self.metrics.checkpoint_failures().inc()
            raise error if error and _code_of(error) == agreed.fault else error_of(agreed.fault)
        if not agreed.flushing:
            self.durable.allow_commit()

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

        began, is_saved = time.monotonic(), self.durable.is_saved
        self.durable.save(write)
        if not is_saved:
            self.metrics.checkpoint_blocked_seconds().observe(time.monotonic() - began)

    def drain(self) -> None:
        """Wait for the save that is under way; raises `StopRequested` if a stop cannot wait."""
        if not self._drains():
            self.end_on_request()

    def _drains(self) -> bool:
        """Wait for the save that is under way; False if the time left for a stop is over."""
        stopping = False
        while True:
            self.watchdog.beat()  # each request of an upload ends in time, however long that takes
            self.durable.wait_for_save(_LOOK_SECONDS)
            agreed = agree(self.signals(late=stopping and self.stop.remaining() <= 0))
            self.advance(agreed)
            if not (agreed.flushing or agreed.saving):
                return True
            if agreed.late:
                return False
            stopping = agreed.stop

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
        if self._drains() and not durable.is_saved:
            late = self.leads and durable.seconds > stop.remaining()
            if not agree(self.signals(late=late)).late:
                self.begin_save()
                self._drains()
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


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    return int(error.code) if isinstance(error, WorkerError) else int(ExitCode.BUG)
