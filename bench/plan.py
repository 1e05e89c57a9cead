"""Planning a million samples in 100,000 shards: every rank's first and every batch, in seconds."""

import time

import numpy as np

from worker.data.epoch_plan import EpochPlan


def main() -> None:
    began = time.perf_counter()
    plan = EpochPlan(np.full(100_000, 10), 256, seed=0, epoch=0)
    made = time.perf_counter()
    plan.batch(0, rank=3, world_size=8)
    first = time.perf_counter()
    for step in range(plan.steps):
        plan.batch(step)
    done = time.perf_counter()
    print(f"plan {made - began:.3f} s, first batch of a rank {1e3 * (first - made):.2f} ms")
    print(f"all {plan.steps} batches of 256: {done - first:.2f} s (bar 1 s for all of it)")
    for share in (0.0, 0.5, 0.9):
        began = time.perf_counter()
        for _ in range(200):
            plan.batch(int(share * plan.steps), rank=3, world_size=8)
        print(f"seek to {share:.0%}: {(time.perf_counter() - began) / 200 * 1e6:.0f} us")


if __name__ == "__main__":
    main()
