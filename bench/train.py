"""Whole training commands side by side: `worker train`, loops, timm's and torchvision's scripts.

python -m bench.train [--timm FOLDER] [--torchvision FOLDER]

All train the same model with AdamW on the same pictures, with as many decoders as there are
cores, in bf16 on a GPU (torchvision's script in fp16) and fp32 on a CPU, in turns. `--timm` is a
checkout of pytorch-image-models, `--torchvision` the folder references/classification of
torchvision's; without them their rows are missing. Speeds are of the last epoch after its first
quarter, by the clock of this process.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.peers import CLASSES, EPOCHS, Contender, Plan, timm_command, torchvision_command
from bench.photos import photos, write_tars


def main() -> None:
    """Print a line per contender."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet50" if cuda else "mobilenet_v3_small")
    parser.add_argument("--side", type=int, default=224 if cuda else 128)
    parser.add_argument("--batch", type=int, default=256 if cuda else 64)
    parser.add_argument("--images", type=int, default=8192 if cuda else 1024)
    parser.add_argument("--rounds", type=int, default=1 if cuda else 3)
    parser.add_argument("--only", nargs="*", help="contenders by the start of their names")
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--torchvision", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            Path(folder),
            options.backbone,
            options.side,
            options.batch,
            options.images,
            len(os.sched_getaffinity(0)),
        )
        write_data(plan)
        chosen = contenders(plan, options.timm, options.torchvision)
        for name in list(chosen):
            if options.only and not name.startswith(tuple(options.only)):
                del chosen[name]
        describe(measure(chosen, plan, options.rounds))


def write_data(plan: Plan) -> None:
    """Write the same pictures as shards and as an image folder; few of them, many times over."""
    few = list(photos(256))
    pictures = list(itertools.islice(itertools.cycle(few), plan.images))
    write_tars(plan.folder / "tars", pictures)
    subprocess.run([sys.executable, "-m", "worker", "index", plan.folder / "tars"], check=True)
    for part, count in (("train", plan.images), ("val", CLASSES)):
        for index in range(count):
            path = plan.folder / part / f"{index % CLASSES:03d}" / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[index])


def contenders(plan: Plan, timm: Path | None, torchvision: Path | None) -> dict[str, Contender]:
    """The commands by name."""
    python, data = sys.executable, str(plan.folder)
    plain = re.compile(r"step (?P<step>\d+)/")
    loop = [
        *(python, "-u", "-m", "bench.loops"),
        *("--backbone", plan.backbone, "--side", str(plan.side), "--batch", str(plan.batch)),
        *("--steps", str(plan.steps), "--workers", str(plan.cores), "--epochs", str(EPOCHS)),
    ]
    found = {
        "worker train": Contender([python, "-m", "worker", "train", _write_manifest(plan)], None),
        "bare loop, nothing decoded": Contender([*loop, "bare", data], plain),
        "DataLoader with PIL": Contender([*loop, "pil", f"{data}/train"], plain),
    }
    if timm:
        progress = re.compile(r"Train: (?P<epoch>\d+) \[ *(?P<step>\d+)/")
        found["timm's train.py"] = Contender(timm_command(plan, timm), progress)
    if torchvision:
        progress = re.compile(r"Epoch: \[(?P<epoch>\d+)\] +\[ *(?P<step>\d+)/")
        found["torchvision's train.py"] = Contender(
            torchvision_command(plan, torchvision), progress
        )
    return found


def measure(
    contenders: dict[str, Contender], plan: Plan, rounds: int
) -> dict[str, list[float | str]]:
    """Images per second of each contender and round, or its last words if it failed."""
    speeds: dict[str, list[float | str]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            speeds[name].append(_speed(contender, plan))
            print(f"{name}: {speeds[name][-1]}", flush=True)
    return speeds


def describe(speeds: dict[str, list[float | str]]) -> None:
    """Print the medians, and the worker's ratio to each."""
    medians = {
        name: statistics.median([speed for speed in found if isinstance(speed, float)] or [0.0])
        for name, found in speeds.items()
    }
    own = medians.get("worker train", 0.0)
    print(f"\n{'':<28} images/s   worker is")
    for name, median in medians.items():
        print(f"{name:<28}{median:9.0f}" + (f"{own / median:10.2f}x" if median else "    failed"))


def _write_manifest(plan: Plan) -> str:
    body = {
        "version": 1,
        "job": "bench",
        "output": f"{plan.folder}/output/",
        "data": {"train": f"{plan.folder}/tars/", "image_size": plan.side},
        "model": {"backbone": plan.backbone},
        "optimizer": {"name": "adamw", "lr": 1e-3, "groups": [{"match": "*"}]},
        "train": {"epochs": EPOCHS, "batch_size": plan.batch},
    }
    path = plan.folder / "job.yaml"
    path.write_text(json.dumps(body))
    return str(path)


def _speed(contender: Contender, plan: Plan) -> float | str:
    """Images per second of the last epoch after its first quarter."""
    shutil.rmtree(plan.folder / "output", ignore_errors=True)
    marks = list(_progress(contender, plan))
    first, last = (EPOCHS - 1 + 0.25) * plan.steps, EPOCHS * plan.steps
    if contender.progress is None:
        marks = list(_history(plan))
    marks = [(step, at) for step, at in marks if first <= step <= last]
    if len(marks) < 2:
        return "failed"
    (start, began), (end, ended) = marks[0], marks[-1]
    return (end - start) * plan.batch / (ended - began)


def _progress(contender: Contender, plan: Plan) -> Iterator[tuple[int, float]]:
    """Steps that are done, over all epochs, each with the time at which the output says so."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        contender.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        found = contender.progress.search(line) if contender.progress else None
        if found:
            epoch = int(found.groupdict().get("epoch") or 0)
            yield epoch * plan.steps + int(found["step"]), time.perf_counter()
    if process.wait():
        print("".join(lines[-5:]), file=sys.stderr)


def _history(plan: Plan) -> Iterator[tuple[int, float]]:
    """Steps of our own run with the seconds that they and those before have taken."""
    before, seconds = 0, 0.0
    for piece in sorted(plan.folder.glob("output/records/*/history/*.jsonl")):
        for row in map(json.loads, piece.read_text().splitlines()):
            if row["event"] == "step":
                seconds += (row["step"] - before) * plan.batch / row["images_per_second"]
                before = row["step"]
                yield before, seconds


if __name__ == "__main__":
    main()
