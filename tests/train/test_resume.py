"""One rank reads a checkpoint for all."""

import functools
import signal
from pathlib import Path
from typing import Any

from tests.support.processes import Run, Start, Write
from tests.support.sabotage import slow_steps


def note_reads(folder: str) -> None:
    """Every rank that reads a checkpoint leaves a file."""
    import torch.distributed as dist

    from worker.train import resume

    real = getattr(resume, "read_commit")

    def read(*arguments: Any) -> Any:
        Path(folder, f"read by {dist.get_rank()}").touch()
        return real(*arguments)

    setattr(resume, "read_commit", read)


def test_one_rank_reads_for_all(
    start: Start, run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    slow = functools.partial(slow_steps, 0.3)
    running = start("train", "--nproc", "2", write(job), sabotage=slow)
    running.wait_for("step 1/")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    noting = functools.partial(note_reads, str(tmp_path))
    ended = run("train", "--nproc", "3", write(job), sabotage=noting)
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.glob("read by *")] == ["read by 0"]
