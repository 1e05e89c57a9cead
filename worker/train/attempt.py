"""An attempt from the perspective of one rank: how it commits and stops."""

import time
from dataclasses import dataclass
from typing import NoReturn

from worker.checkpoint.training_state import State
from worker.errors import ExitCode, StopRequested, WorkerError, error_of
from worker.job.job import Job
from worker.logs import count
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.ranks.agreement import Signals, agree
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog
from worker.record.evaluation_records import EvaluationRecords
from worker.record.journal import Journal
from worker.record.sample_ledger import Recorder
from worker.train.checkpoint_pace import CheckpointPace
from worker.train.durable_state import DurableState

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A rank's part in an attempt; all ranks call its methods together."""

    job: Job
    """The job."""
    rank: Rank
    """This rank."""
    stop: StopFlag
    """The flag that a stop signal sets."""
    metrics: Metrics
    """The rank's metrics."""
    learner: Learner
    """The model, with its optimizer, moving average and loss scaler."""
    durable: DurableState
    """The training state and its checkpoints."""
    recorder: Recorder
    """The ledger of samples."""
    evaluations: EvaluationRecords
    """The records of evaluations; only rank 0 writes them."""
    pace: CheckpointPace
    """When the next checkpoint is due; only rank 0 asks."""
    journal: Journal
    """The event history and progress of the attempt."""
    watchdog: Watchdog
    """Ends the rank if it hangs."""

    @property
    def state(self) -> State:
        """Return the training state that is saved alongside the tensors."""
        return self.durable.state

    @property
    def leads(self) -> bool:
        """Whether this rank leads, that is, writes and logs for all ranks."""
        return self.rank.leads

    def signals(
        self, *, bad: bool = False, due: bool = False, report: bool = False, late: bool = False
    ) -> Signals:
        """Return this rank's flags: the given ones, plus those for a stop, a save and an error."""
        # Read in this order, with the error last: records or an upload that fail in between must
        # not appear as both finished and free of errors.
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
        """Advance a save as far as the progress of all ranks allows.

        Raises the error of one rank on every rank: `Superseded` if a newer attempt has started,
        `InfrastructureError` if the store has failed for good.
        """
        if agreed.fault:
            # The agreed `fault` is the highest code of any rank. A rank with another error, or
            # none, raises a general one of that code.
            error = self.durable.error
            self.metrics.checkpoint_failures().inc()
            raise error if error and _code_of(error) == agreed.fault else error_of(agreed.fault)
        # Saves begin between exchanges of flags, at the same point on all ranks. So every rank had
        # begun this save when it proposed its flags, and none has records left to write.
        if not agreed.flushing:
            self.durable.allow_commit()

    def save(self) -> None:
        """Wait for any save that is under way, then begin a new one."""
        self.drain()
        self.begin_save()

    def begin_save(self) -> None:
        """Begin a save; no other may be under way."""
        # Not in the background: this starts transfers between ranks, whose order must match.
        write_samples = self.recorder.take(self.state.step)

        def write() -> None:
            write_samples()
            self.journal.flush()

        # `is_saved` is read first, as the save sets it. If it is True, only records are written.
        began, is_saved = time.monotonic(), self.durable.is_saved
        self.durable.save(write)
        if not is_saved:
            blocked = time.monotonic() - began
            self.pace.saved(blocked)
            self.metrics.checkpoint_blocked_seconds().observe(blocked)

    def drain(self) -> None:
        """Wait for any save under way; raises `StopRequested` if a stop leaves too little time."""
        if not self._drains():
            self.end_on_request()

    def _drains(self) -> bool:
        """Wait for any save under way; return False if the time left for a stop runs out first."""
        # All ranks leave the loop in the same round, as it ends only on what they have agreed on.
        stopping = False
        while True:
            self.watchdog.beat()  # an upload may be slow, but each of its requests has a deadline
            self.durable.wait_for_save(_POLL_SECONDS)
            # Only once a stop is agreed on: without a signal, the first call of `remaining`
            # starts the clock.
            agreed = agree(self.signals(late=stopping and self.stop.remaining() <= 0))
            self.advance(agreed)
            if not (agreed.flushing or agreed.saving):
                return True
            if agreed.late:
                return False
            stopping = agreed.stop

    def commit(self) -> None:
        """Save the current state, and wait until it is committed."""
        self.save()
        self.drain()

    def end_on_request(self, where: str = "") -> NoReturn:
        """Commit as much as the remaining time allows, and raise `StopRequested`.

        Waits for any save that is under way. Then saves the current state, if the last save took no
        longer than the time that remains.
        """
        durable, stop = self.durable, self.stop
        if self._drains() and not durable.is_saved:
            # Only rank 0 knows how long saves take. The last one is the estimate for this one.
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
                f"a checkpoint (see WORKER_GRACE_SECONDS), so the one of step {durable.committed} "
                f"is kept and {count(lost, 'step')} {'is' if lost == 1 else 'are'} lost; start "
                "again to resume"
            )
        raise StopRequested(
            f"stopped on request after step {self.state.step}, "
            f"committed by attempt {durable.attempt}{where}; start again to resume"
        )


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    return int(error.code) if isinstance(error, WorkerError) else int(ExitCode.BUG)
