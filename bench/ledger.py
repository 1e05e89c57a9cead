"""The cost of `record.samples`: the time to note and to write, against that of a step."""

import tempfile
import time

import numpy as np

from bench.learners import ALONE
from worker.record.sample_ledger import Recorder
from worker.store import open_store

STEPS, SAVE_EVERY = 2000, 500


def main() -> None:
    for batch in (64, 256, 1024):
        with tempfile.TemporaryDirectory() as folder:
            ids, valid = np.arange(batch), np.ones(batch, dtype=bool)
            seconds = {}
            for samples in (False, True):
                recorder = Recorder(
                    open_store(f"{folder}/{samples}"),
                    1,
                    ALONE,
                    step=0,
                    share=batch,
                    samples=samples,
                )
                began = time.perf_counter()
                for step in range(STEPS):
                    recorder.trained(step, ids, valid)
                    if step % SAVE_EVERY == SAVE_EVERY - 1:
                        recorder.take(step + 1)()
                seconds[samples] = (time.perf_counter() - began) / STEPS
            cost = seconds[True] - seconds[False]
            print(
                f"batch {batch:5} per rank: {1e6 * cost:5.1f} us a step, writing included; "
                f"{cost / 10e-3:.2%} of a step of 10 ms (bar 1%)"
            )


if __name__ == "__main__":
    main()
