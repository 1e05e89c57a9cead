"""A run as a TensorBoard event file, which every export replaces."""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from worker.trackers.series import TrackedRun


def export_to_tensorboard(run: TrackedRun, folder: Path) -> str:
    """Write a run to `folder`, below the name of its job; return the path of the file.

    The name of the file depends on the run alone, so that a second export replaces the first.
    """
    target = folder / f"{run.name}-{run.id[:6]}"
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"events.out.tfevents.{round(run.began)}.worker"
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=run.began, file_version="brain.Event:2").SerializeToString())
        settings = {name: value for name, value in run.settings.items() if value != "none"}
        for summary in hparams(settings, run.results):
            writer.write(Event(wall_time=run.began, summary=summary).SerializeToString())
        for name, points in run.series.items():
            for point in points:
                writer.write(_scalar(name, point.step, point.time, point.value))
        last = max((points[-1].step for points in run.series.values()), default=0)
        for name, value in run.results.items():
            writer.write(_scalar(name, last, run.ended, value))
        writer.flush()
    part.replace(path)
    return str(path)


def _scalar(name: str, step: int, at: float, value: float) -> bytes:
    summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
    data: bytes = Event(wall_time=at, step=step, summary=summary).SerializeToString()
    return data
