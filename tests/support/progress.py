"""The progress of a job, made up."""

from worker.record.progress import StepProgress


def progress_at(step: int, loss: float = 0.0, wait: float = 0.0) -> StepProgress:
    """Return the progress after a step of ten."""
    return StepProgress(
        step=step,
        total_steps=10,
        epoch=1,
        loss=loss,
        accuracy=0.5,
        images_per_second=1.0,
        wait_ratio=wait,
        remaining_seconds=0.0,
        checkpoint_seconds=60.0,
        rates={"head": 1e-3},
        gradient_norms={"head": 1.0},
    )
