"""A run as an offline run of Weights & Biases, for `wandb sync`."""

import os
import shutil
from pathlib import Path

from worker.trackers.series import TrackedRun


def export_to_wandb(run: TrackedRun, folder: Path) -> str:
    """Write a run to `folder`; return the path of its offline run.

    The run's id depends on its output alone, so that syncing a second export continues the same
    run; the folders of earlier exports are replaced.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "wandb").glob(f"offline-run-*-{run.id}"):
        shutil.rmtree(old)
    logged = wandb.init(
        project="worker",
        name=run.name,
        id=run.id,
        resume="allow",
        mode="offline",
        dir=folder,
        config={"output": run.uri, **run.settings},
        settings=wandb.Settings(
            console="off", disable_git=True, save_code=False, x_disable_stats=True
        ),
    )
    by_step: dict[int, dict[str, float]] = {}
    for name, points in run.series.items():
        for point in points:
            by_step.setdefault(point.step, {"_timestamp": point.time})[name] = point.value
    for step, values in sorted(by_step.items()):
        logged.log(values, step=step)
    logged.summary.update({"state": run.state, **run.results})
    path = str(Path(logged.dir).parent)
    logged.finish(exit_code=0)
    return path
