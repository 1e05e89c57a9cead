"""The outcome in shared memory outlives its writer."""

import multiprocessing
import os
import signal

from worker.metrics.shared_outcome import SharedOutcome


def test_a_board_outlives_who_wrote_it() -> None:
    outcome = SharedOutcome()
    assert outcome.read() == {}

    def write_and_die() -> None:
        outcome.write(kept={"step": 3.0})
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=write_and_die)
    child.start()
    child.join()
    assert outcome.read() == {"kept": {"step": 3.0}}
    outcome._memory[:] = b'{"kept"'.ljust(4096, b"\0")  # killed in the middle of it
    assert outcome.read() == {}
