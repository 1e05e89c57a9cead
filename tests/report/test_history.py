"""A resumed run reads as one."""

from typing import Any

from worker.report.history import AttemptHistory, stitched


def test_a_resumed_run_reads_as_one() -> None:
    first: list[dict[str, Any]] = [
        {"event": "start", "step": 0},
        *({"event": "step", "step": n} for n in (1, 2, 3)),
    ]
    second: list[dict[str, Any]] = [
        {"event": "start", "step": 2},
        *({"event": "step", "step": n} for n in (3, 4)),
    ]
    events = stitched([AttemptHistory(1, tuple(first)), AttemptHistory(2, tuple(second))])
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
