"""Seven ways to fine-tune on hymenoptera, worker next to a plain PyTorch loop, three seeds each.

    python -m bench.rates PHOTOS WEIGHTS FOLDER [--side worker|plain]

PHOTOS is an image folder with train/ and val/, WEIGHTS a safetensors file of efficientnet_b0, and
FOLDER keeps data, runs and results; started again, it continues. Prints a table in Markdown of the
validation accuracy after the last epoch.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.reference import VARIANTS

SEEDS = (0, 1, 2)
GROUPS: dict[str, list[dict[str, Any]]] = {
    "frozen": [{"match": "head"}, {"match": "backbone", "freeze": "always"}],
    "two-group": [{"match": "head"}, {"match": "backbone", "lr": 1e-5}],
    "graded": [
        {"match": "features.1", "scale": 0.05},
        {"match": ["features.2", "features.3"], "scale": 0.1},
        {"match": "head"},
        {"match": "*", "scale": 0.01},
    ],
    "layer-decay": [{"match": "*", "layer_decay": 0.65}],
    "gradual": [
        {"match": "head"},
        {"match": "backbone", "layer_decay": 0.65, "freeze": {"steps": 4, "block_every": 2}},
    ],
    "one-rate": [{"match": "*"}],
    "scratch": [{"match": "*"}],
}


def manifest(folder: Path, weights: str, variant: str, seed: int) -> dict[str, Any]:
    """The job of one variant and seed."""
    return {
        "version": 1,
        "job": f"{variant}-{seed}",
        "output": f"{folder}/runs/{variant}-{seed}/",
        "data": {"train": f"{folder}/data/train/", "val": f"{folder}/data/val/"},
        "model": {
            "backbone": "efficientnet_b0",
            "weights": "none" if variant == "scratch" else weights,
        },
        "optimizer": {
            "name": "adam",
            "lr": 1e-3,
            "weight_decay": 1e-5,
            "groups": GROUPS[variant],
        },
        "train": {"epochs": 6, "batch_size": 64, "seed": seed},
    }


def run_worker(folder: Path, weights: str, variant: str, seed: int) -> float:
    """The accuracy that `worker train` ends with."""
    job = manifest(folder, weights, variant, seed)
    path = folder / f"{job['job']}.json"
    path.write_text(json.dumps(job))
    subprocess.run([sys.executable, "-m", "worker", "train", str(path)], check=True)
    return float(json.loads(Path(job["output"], "done.json").read_text())["accuracy"])


def run_plain(photos: str, weights: str, variant: str, seed: int) -> float:
    """The accuracy that the plain loop ends with."""
    command = [sys.executable, "-m", "bench.reference", photos, weights, variant]
    ended = subprocess.run(
        [*command, "--seed", str(seed)], check=True, capture_output=True, text=True
    )
    return float(ended.stdout.split()[-1])


def describe(results: dict[str, float]) -> str:
    """A row per variant: mean, standard deviation and all seeds, of both sides."""
    lines = ["| plan | worker | seeds | plain PyTorch | seeds |", "|---|---|---|---|---|"]
    for variant in VARIANTS:
        cells = [variant]
        for side in ("worker", "plain"):
            keys = [f"{side} {variant} {seed}" for seed in SEEDS]
            found = [results[key] for key in keys if key in results]
            spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}" if found else "")
            cells.append(" ".join(f"{value:.3f}" for value in found))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", choices=["worker", "plain"])
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    weights = str(Path(options.weights).resolve())
    kept = folder / "results.json"
    results: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    if not (folder / "data").exists():
        pack = [sys.executable, "-m", "worker", "pack", options.photos, str(folder / "data")]
        subprocess.run([*pack, "--shard-size", "4"], check=True)
    for seed in SEEDS:
        for variant in VARIANTS:
            for side in ("worker", "plain"):
                key = f"{side} {variant} {seed}"
                if key in results or options.side not in (None, side):
                    continue
                results[key] = (
                    run_worker(folder, weights, variant, seed)
                    if side == "worker"
                    else run_plain(options.photos, weights, variant, seed)
                )
                print(key, f"{results[key]:.4f}", flush=True)
                kept.write_text(json.dumps(results, indent=1))
    print(describe(results))


if __name__ == "__main__":
    main()
