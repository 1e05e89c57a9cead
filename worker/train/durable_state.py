"""A job's durable state as one attempt sees it: claimed, resumed, saved by all ranks together.

A save has three stages. All ranks hand their records to a thread of their own, and rank 0 copies
the state to host memory: that is all that training waits for. Then another process uploads the
parts. Once every rank has said, beside a step, that its records are written, rank 0's thread
commits.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from worker.checkpoint.background_thread import Background
from worker.checkpoint.claim import ensure_newest
from worker.checkpoint.cleanup import clean
from worker.checkpoint.commit import CommitName, publish_commit
from worker.checkpoint.output_owner import IDENTITY
from worker.checkpoint.saver_process import Saver
from worker.checkpoint.snapshot import Snapshot, take_snapshot
from worker.errors import ExitCode, WorkerError, error_of
from worker.job.job import Job
from worker.metrics.registry import Metrics
from worker.model.learner import Learner
from worker.ranks.agreement import Signals, agree
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.record.events import CommitEvent
from worker.record.journal import Journal
from worker.train.resume import Resumed

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


class DurableState:
    """The state of a job with its checkpoints in the store; its methods are called by all ranks."""

    def __init__(
        self,
        job: Job,
        rank: Rank,
        learner: Learner,
        *,
        saver: Saver | None,
        resumed: Resumed,
        metrics: Metrics,
        journal: Journal,
        stop: StopFlag,
        beat: Callable[[], None],
    ) -> None:
        self._job = job
        self._rank = rank
        self._learner = learner
        self._device = next(learner.model.parameters()).device
        self._metrics = metrics
        self._journal = journal
        self._stop = stop
        self._beat = beat
        self.attempt = resumed.attempt
        self.state = resumed.state
        self._saved = dataclasses.replace(resumed.state)
        self._committed = resumed.state.step
        self._trusted = [resumed.commit] if resumed.commit else []
        self._saver = saver
        self._background = Background()
        self._ready = self._background.submit(self._prepare)
        self._flush: Future[None] | None = None
        self._upload: Future[None] | None = None
        self._flushed = threading.Event()
        self._seconds = 0.0
        self._taken = time.monotonic()

    @property
    def is_saved(self) -> bool:
        """Whether a save would add nothing."""
        return self.state == self._saved

    @property
    def committed(self) -> int:
        """The step of the newest checkpoint; known to rank 0."""
        return self._committed

    @property
    def seconds(self) -> float:
        """Return how long the last save took from its start to its commit; known to rank 0."""
        return self._seconds

    def seconds_since_save(self) -> float:
        """Time since the last save was begun."""
        return time.monotonic() - self._taken

    def save(self, write_records: Callable[[], None]) -> None:
        """Begin to save the state as it is now, after `write_records`; none may be under way."""
        self._flushed.clear()
        self._flush = self._background.submit(write_records)
        if self.is_saved:
            return
        began = self._taken = time.monotonic()
        saver = self._saver
        if saver:
            self._ready.result()
            state = {**self.state.as_dict(), IDENTITY: dict(self._job.identity)}
            snapshot = take_snapshot(self._learner, saver.host, state)
            name, best = CommitName(self.state.step, self.attempt), self.state.best_step
            self._upload = self._background.submit(
                lambda: self._commit(saver, name, snapshot, best, began)
            )
        self._saved = dataclasses.replace(self.state)
        self._metrics.checkpoint_blocked_seconds().observe(time.monotonic() - began)

    def signals(self) -> Signals:
        """Return what the other ranks must know of this rank's part in a save."""
        return Signals(
            stop=self._stop.requested,
            flushing=self._flush is not None and not self._flush.done(),
            saving=self._upload is not None and not self._upload.done(),
            fault=_code_of(self._error()),
        )

    def advance(self, agreed: Signals) -> None:
        """Continue a save as far as all ranks have come.

        Raises on every rank what went wrong on one: `Superseded` where a newer attempt has
        started, `InfrastructureError` where the store gave up.
        """
        if agreed.fault:
            error = self._error()
            self._metrics.checkpoint_failures().inc()
            raise error if error and _code_of(error) == agreed.fault else error_of(agreed.fault)
        if not agreed.flushing:
            self._flushed.set()

    def drain(self) -> bool:
        """Wait for the save that is under way; false where the time left for a stop is over."""
        stopping = False
        while True:
            self._beat()  # however long an upload takes, each of its requests ends in time
            own = [f for f in (self._flush, self._upload) if f and not f.done()]
            if own:
                wait(own[:1], _LOOK_SECONDS)
            late = stopping and self._stop.remaining() <= 0
            agreed = agree(dataclasses.replace(self.signals(), late=late))
            self.advance(agreed)
            if not (agreed.flushing or agreed.saving):
                return True
            if agreed.late:
                return False
            stopping = agreed.stop

    def ensure_newest(self) -> None:
        """Raise `Superseded` where a newer attempt has started."""
        ensure_newest(self._job.output, self.attempt)

    def close(self) -> None:
        """End what runs behind the training."""
        self._background.close()

    def _prepare(self) -> None:
        """Prepare the memory for copies before the first save needs it."""
        if self._saver:
            try:
                self._saver.host.prepare(self._device)
            except RuntimeError as error:
                log.warning("checkpoints are copied from the GPU slowly: %s", error)

    def _commit(
        self,
        saver: Saver,
        name: CommitName,
        snapshot: Snapshot,
        best_step: int | None,
        began: float,
    ) -> None:
        """The part of a save that runs behind the training, on rank 0."""
        output = self._job.output
        ensure_newest(output, self.attempt)
        written = saver.write(name, snapshot)
        self._flushed.wait()
        publish_commit(output, name, written)
        self._trusted.append(name)
        self._committed = name.step
        size = sum(part.bytes for part in written)
        self._seconds = time.monotonic() - began
        self._metrics.checkpoint_seconds().observe(self._seconds)
        self._metrics.checkpoint_bytes().set(size)
        self._metrics.last_commit().set(time.time())
        self._journal.note(CommitEvent(step=name.step, seconds=self._seconds, bytes=size))
        self._journal.stand(committed=name.step)
        # What is left over costs space and no more; the next commit tries again.
        with contextlib.suppress(WorkerError):
            clean(output, name, self._trusted, self._job.manifest.checkpoint.keep, best_step)

    def _error(self) -> BaseException | None:
        for future in (self._flush, self._upload):
            if future and future.done() and future.exception():
                return future.exception()
        return None


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    return int(error.code) if isinstance(error, WorkerError) else int(ExitCode.BUG)
