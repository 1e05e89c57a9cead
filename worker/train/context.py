"""Everything that a rank needs for training."""

from collections.abc import Callable
from dataclasses import dataclass

from worker.checkpoint.saver_process import Saver
from worker.job.job import Job
from worker.metrics.registry import Metrics
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.record.progress import Progress
from worker.train.loaders import JobLoaders


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """A rank's identity, job and resources, which its launcher opens and closes."""

    job: Job
    """The job."""
    rank: Rank
    """This rank."""
    stop: StopFlag
    """The flag that a stop signal sets."""
    metrics: Metrics
    """The rank's metrics."""
    progress: Progress
    """Display of progress: a live line or log lines on rank 0, nothing on other ranks."""
    loaders: JobLoaders
    """Batches of images."""
    saver: Saver | None
    """The process that writes checkpoints; None on ranks other than 0."""
    until: int | None
    """The number of epochs after which the attempt stops; None to finish the job."""
    report_exit: Callable[[int], None]
    """Reports an exit code to the metrics collector before the process is ended abruptly."""
