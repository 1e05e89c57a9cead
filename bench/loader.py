"""Data loaders side by side over the same pictures: `make bench`.

Contenders take turns, round after round, each in a process of its own, against one S3 look-alike on
loopback; printed are medians and ratios. Two cores are few, and loopback has no latency, unless
`--latency 20 100` puts a proxy that has before our own loader.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.latency import far_away
from bench.server import serve

BARS = {"webdataset": 2.5, "webdataset-tuned": 1.3, "worker, epoch 2, scratch": 0.5}


def run(name: str, workers: int, environment: dict[str, str]) -> dict[str, float]:
    environment = environment | {"BENCH_BEGAN": str(time.time())}
    command = [sys.executable, "-m", "bench.contenders", name, str(workers)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        print(f"{name}: {ended.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def median(results: list[dict[str, float]], key: str) -> float:
    return statistics.median([result[key] for result in results if key in result] or [0.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures are or will be")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, nargs="*", help="milliseconds of a round trip")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    bucket = folder / "bucket"
    if not bucket.exists():
        subprocess.run([sys.executable, "-m", "bench.photos", str(bucket)], check=True)
    tars = bucket / "tars"
    if not (tars / "index.json").exists():
        subprocess.run([sys.executable, "-m", "worker", "index", str(tars)], check=True)
    with serve(folder, folder) as endpoint:
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "BENCH_ENDPOINT": endpoint,
            "BENCH_FOLDER": str(folder),
            "BENCH_SHARDS": str(len(list(tars.glob("*.tar")))),
        }
        if arguments.latency:
            compare_latencies(arguments.latency, arguments.workers, arguments.rounds, environment)
        else:
            compare(arguments.only, arguments.workers, arguments.rounds, environment)


def compare_latencies(
    latencies: list[float], workers: int, rounds: int, environment: dict[str, str]
) -> None:
    """The worker's loader with a store that is a round trip of so many milliseconds away."""
    results: dict[float, list[dict[str, float]]] = {latency: [] for latency in (0.0, *latencies)}
    for _ in range(rounds):
        for latency, found in results.items():
            with far_away(environment["BENCH_ENDPOINT"], latency) as endpoint:
                found.append(run("worker", workers, environment | {"BENCH_ENDPOINT": endpoint}))
    near, first = median(results[0.0], "images_per_second"), median(results[0.0], "after_import")
    print("round trip   img/s   of near   first batch later by")
    for latency, found in results.items():
        speed = median(found, "images_per_second")
        later = median(found, "after_import") - first
        trips = f", {later / latency * 1e3:.1f} round trips" if latency else ""
        print(f"{latency:7.0f} ms {speed:7.0f} {speed / near:9.2f} {later * 1e3:12.0f} ms{trips}")


def compare(names: list[str], workers: int, rounds: int, environment: dict[str, str]) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in [*names, "bare"]}
    for number in range(rounds):
        for name in results:
            # litdata reads a chunk once per window with two workers; one is its best.
            count = 1 if name == "litdata" else workers
            results[name].append(run(name, count, environment))
        print(f"round {number + 1} of {rounds} done, load {os.getloadavg()[0]:.1f}", flush=True)
    ours = median(results["worker"], "images_per_second")
    bare = median(results["bare"], "cpu_ms")
    print(f"\n{'':<25} img/s  worker is  CPU ms/img  of bare  start to batch 1  after imports")
    for name in names:
        speed = median(results[name], "images_per_second")
        if not speed:
            print(f"{name:<25} failed")
            continue
        cpu = median(results[name], "cpu_ms")
        bar = f"  (bar {BARS[name]}x)" if name in BARS else ""
        print(
            f"{name:<25} {speed:5.0f}  {ours / speed:8.2f}x  {cpu:10.2f}  {cpu / bare:6.2f}x  "
            f"{median(results[name], 'first_batch'):14.2f} s  "
            f"{median(results[name], 'after_import'):11.2f} s{bar}"
        )
    print(
        f"{'bare decode + crop':<25} {'':16}  {bare:10.2f}  one thread, bytes in memory (bar 1.25x)"
    )
    seek = run("seek", workers, environment)
    start = seek["0%"]
    times = ", ".join(f"{at} {1e3 * t:.0f} ms ({t / start:.2f}x)" for at, t in seek.items())
    print(f"seek within an epoch, to the first batch: {times} (bar 1.20x)")


if __name__ == "__main__":
    main()
