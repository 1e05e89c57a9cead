"""A job's durable state within one attempt: resumed from a checkpoint, and saved by all ranks.

A save has three stages. All ranks hand their records to a background thread, and rank 0 copies the
state to host memory: training waits for nothing else. Then another process uploads the parts. Once
every rank has reported, during a step, that its records are written, rank 0's thread commits.
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
from worker.errors import WorkerError
from worker.job.job import Job
from worker.model.learner import Learner
from worker.record.events import CommitEvent
from worker.train.resume import Resumed

log = logging.getLogger(__name__)


class DurableState:
    """A rank's copy of the state of a job, with its checkpoints in the store.

    Args:
        job: The job.
        learner: The learner to save.
        resumed: The attempt, and the state that it starts with.
        saver: The process that uploads; None on ranks other than 0.
        note: Called with each commit, on the thread that made it.
    """

    def __init__(
        self,
        job: Job,
        learner: Learner,
        resumed: Resumed,
        *,
        saver: Saver | None,
        note: Callable[[CommitEvent], None],
    ) -> None:
        self._job = job
        self._learner = learner
        self._saver = saver
        self._note = note
        self.attempt = resumed.attempt
        self.state = resumed.state
        self.committed = resumed.state.step
        """The step of the newest checkpoint; known only to rank 0."""
        self.seconds = 0.0
        """How long the last save took from its start to its commit; known only to rank 0."""
        # A copy, as the state changes in place.
        self._saved = dataclasses.replace(resumed.state)
        self._trusted = [resumed.commit] if resumed.commit else []
        self._background = Background()
        self._ready = self._background.submit(self._prepare)
        self._flush: Future[None] | None = None
        self._upload: Future[None] | None = None
        self._flushed = threading.Event()
        self._taken = time.monotonic()

    @property
    def is_saved(self) -> bool:
        """Whether the current state is already saved, or being saved."""
        return self.state == self._saved

    @property
    def flushing(self) -> bool:
        """Whether this rank's records are still being written."""
        return self._flush is not None and not self._flush.done()

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is under way; known only to rank 0."""
        return self._upload is not None and not self._upload.done()

    @property
    def error(self) -> BaseException | None:
        """Return the error of a save in the background, if any."""
        for future in (self._flush, self._upload):
            if future and future.done() and future.exception():
                return future.exception()
        return None

    def seconds_since_save(self) -> float:
        """Return the seconds since the last save began."""
        return time.monotonic() - self._taken

    def save(self, write_records: Callable[[], None]) -> None:
        """Begin to save the current state, after `write_records`; no save may be under way."""
        self._flushed.clear()
        # On the same thread as the upload, and before it.
        self._flush = self._background.submit(write_records)
        if self.is_saved:
            return
        began = self._taken = time.monotonic()
        saver = self._saver
        if saver:
            # The copy must not begin while `_prepare` is zeroing or page-locking the memory.
            self._ready.result()
            state = {**self.state.as_dict(), IDENTITY: dict(self._job.identity)}
            snapshot = take_snapshot(self._learner, saver.host, state)
            # Read now, as training changes the state during the upload.
            name = CommitName(self.state.step, self.attempt)
            kept = {step for step in (self.state.best_step, self._job.kept_release) if step}
            self._upload = self._background.submit(
                lambda: self._commit(saver, name, snapshot=snapshot, kept=kept, began=began)
            )
        self._saved = dataclasses.replace(self.state)

    def allow_commit(self) -> None:
        """Allow the save to be committed, now that the records of all ranks are written."""
        self._flushed.set()

    def wait_for_save(self, seconds: float) -> None:
        """Wait for work that is under way on this rank, for at most `seconds`."""
        own = [f for f in (self._flush, self._upload) if f and not f.done()]
        if own:
            # The flush first: rank 0's upload ends only after `allow_commit`, and the caller cannot
            # learn that all ranks have flushed while it waits here.
            wait(own[:1], seconds)

    def ensure_newest(self) -> None:
        """Raise `Superseded` if a newer attempt has started."""
        ensure_newest(self._job.output, self.attempt)

    def close(self) -> None:
        """Let the background thread end once its work is done."""
        self._background.close()

    def _prepare(self) -> None:
        """Prepare the host memory for copies before the first save needs it."""
        if self._saver:
            try:
                self._saver.host.prepare(next(self._learner.model.parameters()).device)
            except RuntimeError as error:
                log.warning("copying checkpoints from the GPU will be slow: %s", error)

    def _commit(
        self,
        saver: Saver,
        name: CommitName,
        *,
        snapshot: Snapshot,
        kept: set[int],
        began: float,
    ) -> None:
        """Upload and commit a snapshot, in the background on rank 0."""
        output = self._job.output
        # This merely spares a superseded attempt the upload. The check that matters, which fences
        # off commits, is the one in `publish_commit`.
        ensure_newest(output, self.attempt)
        written = saver.write(name, snapshot)
        self._flushed.wait()
        publish_commit(output, name, written)
        # Before the cleanup, which keeps only trusted commits.
        self._trusted.append(name)
        self.committed = name.step
        size = sum(part.bytes for part in written)
        self.seconds = time.monotonic() - began
        self._note(CommitEvent(step=name.step, seconds=self.seconds, bytes=size))
        # Leftover objects only take up space; the next commit tries again.
        with contextlib.suppress(WorkerError):
            clean(
                output,
                name,
                trusted=self._trusted,
                keep=self._job.manifest.checkpoint.keep,
                kept_steps=kept,
            )
