"""Everything that a rank is given to train with."""

from collections.abc import Callable
from dataclasses import dataclass

from worker.checkpoint.saver_process import Saver
from worker.job.job import Job
from worker.metrics.registry import Metrics
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.record.progress import Progress
from worker.train.loaders import Loaders


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """A rank's place, job and resources, opened by its launcher and closed by it."""

    job: Job
    """The job."""
    rank: Rank
    """This rank."""
    stop: StopFlag
    """Signals."""
    metrics: Metrics
    """Its metrics."""
    progress: Progress
    """The live line or log lines of rank 0; shows nothing on the others."""
    loaders: Loaders
    """Batches of images."""
    saver: Saver | None
    """The process that writes checkpoints; rank 0 has one."""
    report_exit: Callable[[int], None]
    """Announces an exit code to whoever collects metrics, before the process is ended abruptly."""
