"""A lost rank is noticed; those that end together lose nobody."""

import functools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support.processes import Run, in_fresh_process
from tests.support.sabotage import killed_while_others_are_in_native_code, killed_while_reading
from worker.launch.spawn import run_ranks
from worker.launch.topology import one_node
from worker.ranks.peer_liveness import Liveness
from worker.ranks.process_group import process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag


def stuck_beside_a_lost_rank(folder: Path) -> None:
    """Rank 2 of 4 dies while the others are in native code, as a GPU's collective is."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):

            def lost(gone: int) -> None:
                (folder / f"{rank.rank}").write_text(f"{gone} {time.time()}")
                os._exit(69)

            Liveness(lost, 60)
            dist.barrier()
            if rank.rank == 2:
                (folder / "died").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    assert (
        run_ranks(
            one_node(4),
            run,
            StopFlag(),
        )
        == 69
    )


def test_ranks_that_are_stuck_notice_a_lost_one(tmp_path: Path) -> None:
    in_fresh_process(stuck_beside_a_lost_rank, tmp_path)
    died = float((tmp_path / "died").read_text())
    for rank in (0, 1, 3):
        gone, at = (tmp_path / str(rank)).read_text().split()
        assert gone == "2"  # the one that was lost, not the next to end
        assert float(at) - died < 40  # by itself, it would have woken after 60


@pytest.mark.parametrize(
    "plan",
    [functools.partial(killed_while_others_are_in_native_code, 2), killed_while_reading],
    ids=["in a step", "while reading"],
)
def test_a_job_ends_soon_after_a_rank_is_lost(
    plan: Callable[[], None], run: Run, write: Callable[[dict[str, Any]], str], job: dict[str, Any]
) -> None:
    ended = run("train", "--nproc", "3", write(job), sabotage=plan)
    assert ended.code == 69, ended.err
    assert "lost rank" in ended.err or "lost another rank" in ended.err
    assert "is still running although" not in ended.err  # the parent did not have to wait 30 s


def end_together(folder: Path) -> None:
    """A farewell, or an end that all ranks come to by themselves, is no loss."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):
            liveness = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 60)
            time.sleep(0.3 * rank.rank)
            liveness.close()
            again = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 60)
            dist.barrier()
            again.abandon()
            time.sleep(rank.rank)

    assert (
        run_ranks(
            one_node(3),
            run,
            StopFlag(),
        )
        == 0
    )
    assert not list(folder.iterdir())


def test_ranks_that_end_together_lose_nobody(tmp_path: Path) -> None:
    in_fresh_process(end_together, tmp_path)


def idle_for_long(folder: Path) -> None:
    """Ranks that have nothing to say for longer than they were waited for at first."""

    def run(rank: Rank, listener: socket.socket | None) -> None:
        with process_group(rank, listener, StopFlag()):
            liveness = Liveness(lambda gone: (folder / f"lost {gone}").touch(), 8)
            time.sleep(12)
            dist.barrier()
            liveness.close()

    assert (
        run_ranks(
            one_node(2),
            run,
            StopFlag(),
        )
        == 0
    )
    assert not list(folder.iterdir())


def test_a_long_job_loses_nobody(tmp_path: Path) -> None:
    in_fresh_process(idle_for_long, tmp_path)
