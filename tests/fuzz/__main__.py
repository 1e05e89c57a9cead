"""Run cases by chance, in bounded time and memory: `python -m tests.fuzz`.

Cases that end otherwise than they may are written to `--failures`, each with its seed and the
traceback; `--target NAME --seed N --only` runs one of them again.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

from tests.fuzz.cases import run_batch, run_case, settle
from tests.fuzz.targets import TARGETS

_BATCH = 200
_SHOWN = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60, help="Stop after these.")
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20)
    parser.add_argument("--target", choices=[target.name for target in TARGETS])
    parser.add_argument("--only", action="store_true", help="Run the case of this seed alone.")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    targets = [t for t in TARGETS if options.target in (None, t.name)]
    if options.only:
        settle()
        outcome, trace = run_case(targets[0], options.seed)
        print(outcome, trace, sep="\n")
        return bool(trace)
    shares = sum(target.share for target in targets)
    work = [
        (target.name, options.seed + first, min(_BATCH, count - first))
        for target in targets
        for count in [max(1, round(options.cases * target.share / shares))]
        for first in range(0, count, _BATCH)
    ]
    Random(options.seed).shuffle(work)
    outcomes: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    faults, began = 0, time.monotonic()
    # Not multiprocessing.Pool, which waits for ever for what a process that crashed was at.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, settle) as pool:
        for future in as_completed([pool.submit(run_batch, each) for each in work]):
            if time.monotonic() - began > 60 * options.minutes:
                pool.shutdown(wait=False, cancel_futures=True)
                break
            name, found, failed = future.result()
            outcomes[name] += found
            for seed, trace in failed:
                faults += 1
                options.failures.mkdir(exist_ok=True)
                (options.failures / f"{name}-{seed}.txt").write_text(trace)
                if faults < _SHOWN:
                    line = trace.strip().splitlines()[-1][:200]
                    print(f"--target {name} --seed {seed} --only: {line}", flush=True)
    seconds = time.monotonic() - began
    total = sum(sum(counter.values()) for counter in outcomes.values())
    for name, counter in outcomes.items():
        told = ", ".join(f"{outcome} {count:,}" for outcome, count in counter.most_common())
        print(f"{name:<12} {sum(counter.values()):>9,}  {told}")
    print(f"{total:,} cases in {seconds:.0f} s, {faults} faults, seed {options.seed}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
