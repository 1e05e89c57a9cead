"""A resumed run reads as one."""

from worker.record.events import Event, SkippedEvent, StartEvent
from worker.record.history import AttemptHistory, stitched


def test_a_resumed_run_reads_as_one() -> None:
    first: tuple[Event, ...] = (
        StartEvent(attempt=1, step=0, world_size=1),
        *(SkippedEvent(step=n) for n in (1, 2, 3)),
    )
    second: tuple[Event, ...] = (
        StartEvent(attempt=2, step=2, world_size=1),
        *(SkippedEvent(step=n) for n in (3, 4)),
    )
    events = stitched([AttemptHistory(1, first), AttemptHistory(2, second)])
    assert [event.step for event in events if isinstance(event, SkippedEvent)] == [1, 2, 3, 4]
