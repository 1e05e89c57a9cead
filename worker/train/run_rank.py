"""The life of one rank: resume, train, finish."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable

import torch

from worker.environment import Settings
from worker.errors import InfrastructureError
from worker.model.learner import Learner, build_learner
from worker.numbers import ceil_div
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.peer_liveness import Liveness
from worker.ranks.process_group import device_of, meaningful_errors
from worker.ranks.watchdog import Watchdog, end_after
from worker.record.evaluation_records import EvaluationRecords
from worker.record.journal import Journal, open_journal
from worker.record.sample_ledger import Recorder
from worker.record.telemetry import note_commit
from worker.train.attempt import Attempt
from worker.train.checkpoint_pace import CheckpointPace, mean_time_between_failures
from worker.train.context import RankContext
from worker.train.durable_state import DurableState
from worker.train.finish import finish
from worker.train.resume import Resumed, begin_attempt
from worker.train.trainer import Trainer

log = logging.getLogger(__name__)


def run_rank(context: RankContext) -> None:
    """Train to the end, or raise `StopRequested` with as much committed as the time allows.

    Called by all ranks together, within their process group.
    """
    job, rank = context.job, context.rank
    torch.set_num_threads(cores_per_rank(rank))
    torch.get_num_threads()  # fixes the count for this thread, whatever other threads set
    last_words = _LastWords(context.report_exit)
    # The contexts end in reverse order: errors are translated before the journal records them, and
    # the watchdog stops last.
    with contextlib.ExitStack() as stack:
        watchdog = Watchdog(Settings.from_env().stall_seconds, rank.rank, last_words.report)
        stack.callback(watchdog.close)
        liveness = Liveness(
            lambda gone: last_words.end_now(f"lost rank {gone}"),
            Settings.from_env().collective_seconds,
        )
        stack.callback(liveness.abandon)
        learner = build_learner(job.backbone.model, job.groups, job.manifest, device_of(rank))
        resumed = begin_attempt(
            job, rank, learner=learner, metrics=context.metrics, beat=watchdog.beat
        )
        learner.pull.share()
        if resumed.done:
            if rank.leads:
                log.info("job %s has meanwhile been finished by another attempt", job.manifest.job)
            return
        journal = stack.enter_context(
            open_journal(job.output, resumed.attempt, leads=rank.leads, stop=context.stop)
        )
        stack.enter_context(meaningful_errors())
        last_words.journal = journal
        journal.begin(resumed.state.step, job.total_steps, rank.world_size)
        attempt = _open_attempt(context, learner, resumed, journal=journal, watchdog=watchdog)
        stack.callback(attempt.durable.close)
        watchdog.beat()
        trainer = Trainer(attempt, context.loaders, context.progress, context.until)
        trainer.train()
        finish(attempt, context.loaders, trainer.validation, trainer.validated)
        liveness.close()


def _open_attempt(
    context: RankContext,
    learner: Learner,
    resumed: Resumed,
    *,
    journal: Journal,
    watchdog: Watchdog,
) -> Attempt:
    job, rank = context.job, context.rank
    recorder = Recorder(
        job.output,
        resumed.attempt,
        rank,
        step=resumed.state.step,
        share=ceil_div(job.manifest.train.batch_size, rank.world_size),
        samples=job.manifest.record.samples,
    )
    durable = DurableState(
        job,
        learner,
        resumed,
        saver=context.saver,
        note=functools.partial(note_commit, context.metrics, journal),
    )
    return Attempt(
        job=job,
        rank=rank,
        stop=context.stop,
        metrics=context.metrics,
        learner=learner,
        durable=durable,
        recorder=recorder,
        evaluations=EvaluationRecords(job.output, resumed.attempt),
        pace=CheckpointPace(
            job.manifest.checkpoint,
            mean_time_between_failures(job.output, resumed.attempt) if rank.leads else None,
        ),
        journal=journal,
        watchdog=watchdog,
    )


class _LastWords:
    """The final report of a rank whose main thread is stuck, before it ends with exit code 69."""

    def __init__(self, report_exit: Callable[[int], None]) -> None:
        self._report_exit = report_exit
        self.journal: Journal | None = None
        """The journal of the attempt, once there is one."""

    def report(self, error: InfrastructureError) -> None:
        """Record the error as the end of the attempt, and announce its exit code."""
        if self.journal:
            # This cannot block for long: the journal has a time limit of its own.
            self.journal.close(error, math.inf)
        self._report_exit(error.code)

    def end_now(self, text: str) -> None:
        """Log the text, report it, and end this process."""
        log.error("%s", text)
        end_after(lambda: self.report(InfrastructureError(text)))
