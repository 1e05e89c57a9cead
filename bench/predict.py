"""Predicting a folder of photographs: `worker predict` next to what people run instead, in turns.

    python -m bench.predict [--timm FOLDER] [--images 4000] [--rounds 3] [--backbone resnet18]

Contenders: a DataLoader loop over ImageFolder that writes the best class of each picture as CSV,
and timm's `inference.py` from a checkout of pytorch-image-models (with timm installed in
`.venv-bench`). Each is a process of its own, start included. Then, in one process, the two bounds:
images that the loader alone decodes a second, and images that the model alone computes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from bench.photos import photos
from tests.support.finished import finished_model
from worker.apply.predict_parts import NAME
from worker.apply.prediction_source import _open_listing, find_images
from worker.data.batch_requests import Request
from worker.data.decode_image import MAX_PIXELS, ImageSpec
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders, LoadPlan
from worker.learn.predictor import Predictor
from worker.model.classifier import load_classifier
from worker.model.learner import precision_on
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.process_group import device_of
from worker.ranks.rank import Rank
from worker.store import open_store

_CLASSES = 10
_SIZE = 224
_LOOP = """
import csv, os, sys, torch, torchvision
from torchvision.transforms import v2
source, weights, backbone, out = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
prepare = v2.Compose([
    v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
data = torchvision.datasets.ImageFolder(source, prepare)
loader = torch.utils.data.DataLoader(data, 64, num_workers=len(os.sched_getaffinity(0)))
from safetensors.torch import load_file
model = torchvision.models.get_model(backbone, num_classes=10)
model.load_state_dict(load_file(weights))
model = model.eval().to(device)
with open(out, "w") as file, torch.inference_mode():
    write = csv.writer(file)
    done = 0
    for images, _ in loader:
        best = model(images.to(device)).softmax(1).max(1)
        for chance, label in zip(best.values.tolist(), best.indices.tolist()):
            write.writerow([data.samples[done][0], label, chance])
            done += 1
"""
_CHECKPOINT = """
import sys, timm, torch
torch.save(timm.create_model(sys.argv[1], num_classes=10).state_dict(), sys.argv[2])
"""
_ALONE = Rank(rank=0, world_size=1, local_rank=0, local_world_size=1, master_addr="", master_port=0)


def commands(folder: Path, model: str, backbone: str, timm: Path | None) -> dict[str, list[str]]:
    """The contenders by name."""
    photographs, out = str(folder / "photos"), str(folder / "out")
    found = {
        "worker predict": [
            *(sys.executable, "-m", "worker", "predict", model, f"{photographs}/", "--out", out),
            *("--top", "1", "--format", "csv"),
        ],
        "DataLoader loop": [
            *(sys.executable, "-c", _LOOP, photographs, f"{model}/model.safetensors", backbone),
            f"{out}.csv",
        ],
    }
    if timm:
        python = Path(".venv-bench/bin/python")
        python = python if python.exists() else Path(sys.executable)
        # With a checkpoint, so that it does not look for weights on the network.
        subprocess.run([str(python), "-c", _CHECKPOINT, backbone, f"{folder}/timm.pth"], check=True)
        found["timm inference.py"] = [
            *(str(python), str(timm / "inference.py"), "--checkpoint", f"{folder}/timm.pth"),
            *("--data-dir", photographs, "--model", backbone, "--num-classes", str(_CLASSES)),
            *("--batch-size", "64", "--workers", str(len(os.sched_getaffinity(0)))),
            *("--results-dir", out, "--results-format", "csv", "--topk", "1"),
            *([] if torch.cuda.is_available() else ["--device", "cpu"]),
        ]
    return found


def run(command: list[str], folder: Path) -> float:
    """Run a contender; return its seconds."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{command[:3]}: {ended.stderr[-2000:]}")
    return time.monotonic() - began


def bounds(folder: Path, model: str, images: int) -> tuple[float, float]:
    """Images a second of the loader alone, and of the model alone."""
    classifier, device = load_classifier(model), device_of(_ALONE)
    torch.set_num_threads(cores_per_rank(_ALONE))
    out = open_store(str(folder / "bound"))
    found = find_images(f"{folder}/photos/", out)
    listing = _open_listing(open_store(f"{out.uri}{found.place}"))
    feed = EvaluationFeed(classifier.card.preprocessing, on_gpu=device.type == "cuda")
    spec = ImageSpec(MAX_PIXELS, 16)
    plan = LoadPlan(sets={NAME: listing}, feed=feed, spec=spec, size=_SIZE, lanes=32)
    with closing(Loaders(plan, _ALONE, device)) as loaders:
        loaders.start()
        began = time.monotonic()
        request = Request(dataset=NAME, samples=range(images), keyed=True)
        with closing(loaders.batches(request)) as batches:
            for _ in batches:
                pass
        decoding = images / (time.monotonic() - began)
    classifier.model.to(device).to(memory_format=torch.channels_last)
    predict = Predictor(classifier.model, precision_on(device, "auto"))
    batch = torch.zeros(feed.most_images, 3, _SIZE, _SIZE, dtype=torch.uint8, device=device)
    rounds = max(2, images // 4 // len(batch))
    with torch.inference_mode():
        predict(classifier.card.preprocessing.normalize(batch))
        began = time.monotonic()
        for _ in range(rounds):
            logits, _ = predict(classifier.card.preprocessing.normalize(batch))
            logits.cpu()
    return decoding, rounds * len(batch) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, data in enumerate(photos(options.images)):
            path = folder / "photos" / f"class-{number % _CLASSES}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        classes = tuple(f"class-{n}" for n in range(_CLASSES))
        backbone = options.backbone
        model = finished_model(folder / "final", classes, backbone=backbone, size=_SIZE)
        found = commands(folder, model, backbone, options.timm)
        seconds: dict[str, list[float]] = {contender: [] for contender in found}
        for _ in range(options.rounds):
            for contender, command in found.items():
                seconds[contender].append(run(command, folder))
        own = statistics.median(seconds["worker predict"])
        print(
            f"{options.images} photographs, {backbone} at {_SIZE} px, medians of {options.rounds}"
        )
        for contender, times in seconds.items():
            middle = statistics.median(times)
            speed = options.images / middle
            print(f"{contender:<18} {middle:6.1f} s  {speed:6.0f} images/s  {middle / own:5.2f}")
        decoding, model_alone = bounds(folder, model, options.images)
        best = min(decoding, model_alone)
        print(f"loader alone {decoding:.0f} images/s, model alone {model_alone:.0f} images/s")
        share = options.images / own / best
        print(f"worker predict, start included, reaches {share:.2f} of the lower")


if __name__ == "__main__":
    main()
