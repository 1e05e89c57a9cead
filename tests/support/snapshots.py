"""Checkpoints in memory."""

from typing import Any

from worker.checkpoint.host_copy import HostCopy, room_for
from worker.checkpoint.snapshot import take_snapshot
from worker.checkpoint.tensor_files import TensorStream
from worker.model.learner import Learner


def snapshot_of(learner: Learner, state: dict[str, Any]) -> dict[str, bytearray]:
    """The parts of a checkpoint as they would be read back."""
    # Weights, their average, two moments, and a step count of each.
    host = HostCopy(5 * sum(map(room_for, learner.model.state_dict().values())))
    parts = take_snapshot(learner, host, state).parts(host)
    return {name: _joined(stream) for name, stream in parts.items()}


def _joined(stream: TensorStream) -> bytearray:
    """All of a stream; of the largest models there is room for one copy."""
    data, filled = memoryview(bytearray(stream.size)), 0
    for piece in stream.pieces():
        data[filled : filled + len(piece)] = piece
        filled += len(piece)
    joined: bytearray = data.obj  # type: ignore[assignment]
    return joined
