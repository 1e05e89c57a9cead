"""Mixing by lanes and window on shards sorted by class, the worst case.

A full shuffle is the yardstick: 100% is as many distinct classes per batch as it has.
"""

import numpy as np

from worker.data.epoch_plan import EpochPlan

SHARDS, PER_SHARD, CLASSES, BATCH, SAMPLE_MB = 128, 1000, 100, 64, 0.08


def classes_per_batch(batches: list[np.ndarray], labels: np.ndarray) -> float:
    return float(np.mean([len(np.unique(labels[ids])) for ids in batches]))


def main() -> None:
    counts = np.full(SHARDS, PER_SHARD)
    total = int(counts.sum())
    labels = np.arange(total) * CLASSES // total
    shuffled = np.random.default_rng(0).permutation(total)
    steps = range(0, total // BATCH, 20)
    ideal = classes_per_batch([shuffled[s * BATCH : (s + 1) * BATCH] for s in steps], labels)
    print(f"{'lanes':>5} {'window':>6} {'mixed':>6}  read ahead, one rank")
    for lanes in (1, 4, 8, 16, 32, 64):
        for window in (16, 32, 64, 256, 1024):
            plan = EpochPlan(counts, BATCH, 0, epoch=0, lanes=lanes, window=window)
            found = classes_per_batch([plan.batch(step) for step in steps], labels)
            memory = lanes * window * SAMPLE_MB
            print(f"{lanes:5} {window:6} {found / ideal:6.0%}  {memory:6.0f} MB")


if __name__ == "__main__":
    main()
