"""Charts of a single run, and of several runs compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from worker.plots import Chart, Line, draw
from worker.record.events import CommitEvent, EndEvent, EvaluationEvent, StartEvent, StepEvent
from worker.report.read_run import Run

_HOUR, _MINUTE = 3600.0, 60.0
_WIDE = (12.4, 3.0)

Point = StepEvent | EvaluationEvent
Value = Callable[[Point], float | None]


def learning(run: Run) -> list[str]:
    """Draw loss and accuracy over the steps."""
    steps, evaluations = run.history.of(StepEvent), run.history.of(EvaluationEvent)
    charts = []
    for name, value in (("loss", _loss), ("accuracy", _accuracy)):
        lines = [
            _line("train", steps, list(map(value, steps))),
            _line("validation", evaluations, list(map(value, evaluations)), 1, dots=True),
        ]
        lines = [line for line in lines if line.x]
        chart = Chart(
            title=name, x_label="step", lines=lines, rules=resumes(run), percent=name == "accuracy"
        )
        charts.append(draw(chart))
    return charts


def rates(run: Run) -> list[str]:
    """Draw the learning rate and gradient norm of each group, and mark the groups' releases."""
    steps, groups = run.history.of(StepEvent), run.plan.groups
    names = list(dict.fromkeys(name for event in steps for name in event.rates))
    marks = [(g.release_step, f"{g.name} released") for g in groups if g.release_step]
    charts = []
    series: dict[str, list[Mapping[str, float | None]]] = {
        "learning rate": [event.rates for event in steps],
        "gradient norm": [event.gradient_norms for event in steps],
    }
    for title, values in series.items():
        lines = [
            # The axis is logarithmic: a value of 0, such as the rate of a frozen group, becomes a
            # gap.
            _line(name, steps, [by_group.get(name) or None for by_group in values], number)
            for number, name in enumerate(names)
        ]
        charts.append(
            draw(
                Chart(
                    title=title,
                    x_label="step",
                    lines=lines,
                    marks=marks,
                    rules=resumes(run),
                    log_y=True,
                )
            )
        )
    return charts


def speed(run: Run) -> list[str]:
    """Draw the throughput, and the share of the time spent waiting for data."""
    steps = run.history.of(StepEvent)
    images = [_line("images/s", steps, [event.images_per_second for event in steps])]
    waits = [_line("wait", steps, [event.wait_ratio for event in steps], 1)]
    return [
        draw(
            Chart(
                title="images per second",
                x_label="step",
                lines=images,
                rules=resumes(run),
                y_range=(0, None),
            )
        ),
        draw(
            Chart(
                title="waiting for data",
                x_label="step",
                lines=waits,
                rules=resumes(run),
                y_range=(0, 1),
                percent=True,
            )
        ),
    ]


def timeline(run: Run) -> list[str]:
    """Draw steps over elapsed time: a line per attempt, a dot per checkpoint."""
    parts = run.history.parts
    if not parts:
        return []
    began = parts[0].events[0].time
    total = parts[-1].events[-1].time - began
    units = {"hours": _HOUR, "minutes": _MINUTE, "seconds": 1.0}
    # The largest unit that fits more than three times into the run's duration.
    unit, seconds = next((item for item in units.items() if total > 3 * item[1]), ("seconds", 1.0))
    lines = []
    for part in parts:
        step, xs, ys = part.start.step, [], []
        for event in part.events:
            # An end has no step of its own: the line extends to it at the last known step.
            if isinstance(event, StartEvent | StepEvent):
                step = event.step
            elif not isinstance(event, EndEvent):
                continue
            xs.append((event.time - began) / seconds)
            ys.append(step)
        lines.append(Line(name=f"attempt {part.attempt}", x=xs, y=ys, color=part.attempt - 1))
    chart = Chart(
        title="steps over time",
        x_label=f"{unit} since the first attempt began",
        lines=lines,
        dots=[
            ((event.time - began) / seconds, event.step)
            for part in parts
            for event in part.events
            if isinstance(event, CommitEvent)
        ],
        whole=True,
        size=_WIDE,
    )
    return [draw(chart)]


def resumes(run: Run) -> list[float]:
    """Return the steps from which training resumed."""
    return [part.start.step for part in run.history.parts if part.start.step]


def compared(runs: Sequence[Run], titles: Sequence[str]) -> list[str]:
    """Draw the losses, accuracy and throughput of several runs over their epochs."""
    wanted = (
        ("validation accuracy", EvaluationEvent, _accuracy, True),
        ("validation loss", EvaluationEvent, _loss, False),
        ("training loss", StepEvent, _loss, False),
        ("images per second", StepEvent, _speed, False),
    )
    charts = []
    for title, kind, value, percent in wanted:
        lines = [
            _over_epochs(run, title=name, points=run.history.of(kind), value=value, color=number)
            for number, (run, name) in enumerate(zip(runs, titles, strict=True))
        ]
        lines = [line for line in lines if line.x]
        if lines:
            low = 0.0 if value is _speed else None
            charts.append(
                draw(
                    Chart(
                        title=title,
                        x_label="epoch",
                        lines=lines,
                        percent=percent,
                        y_range=(low, None),
                    )
                )
            )
    return charts


def _over_epochs(
    run: Run, *, title: str, points: Sequence[Point], value: Value, color: int
) -> Line:
    """Return a line over epochs, which are comparable between runs with different batch sizes."""
    per_epoch = run.plan.steps_per_epoch
    dots = any(isinstance(point, EvaluationEvent) for point in points)
    line = _line(title, points, list(map(value, points)), color, dots=dots)
    return replace(line, x=[step / per_epoch for step in line.x])


def _line(
    name: str,
    points: Sequence[Point],
    values: Sequence[float | None],
    color: int = 0,
    *,
    dots: bool = False,
) -> Line:
    """Return a line over steps, with a gap where a value is missing."""
    ys = [math.nan if value is None else value for value in values]
    return Line(name=name, x=[point.step for point in points], y=ys, color=color, dots=dots)


def _loss(point: Point) -> float | None:
    return point.loss


def _accuracy(point: Point) -> float | None:
    return point.accuracy


def _speed(point: Point) -> float | None:
    return point.images_per_second if isinstance(point, StepEvent) else None
