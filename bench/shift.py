"""Nine plans of learning rates on six targets made of the same photographs.

    python -m bench.shift PHOTOS WEIGHTS FOLDER [--folds 3] [--epochs 4] [--targets …] [--plans …]

PHOTOS is an image folder with train/ and val/, which are merged and divided into five folds;
WEIGHTS is a safetensors file of efficientnet_b0; FOLDER keeps data, runs and results; started
again, it continues. Every plan gets its own base rate on every target from `find-rates`, and all
get the same number of steps. Prints a table in Markdown: accuracy on the folds that were held out,
with the standard error over folds.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from worker.launch.find_rates import run_diagnosis, run_range_test
from worker.launch.guard import leave
from worker.launch.start import run_job
from worker.learn.rate_diagnosis import SIGNAL
from worker.manifest import check_manifest
from worker.ranks.stop_signal import StopFlag

SIDE, PIXELS, BATCH, OF = 112, 96, 32, 5
FALLBACK = 1e-3
Groups = list[dict[str, Any]]

PLANS: dict[str, Callable[[float], Groups]] = {
    "frozen": lambda lr: [{"match": "head"}, {"match": "backbone", "freeze": "always"}],
    "one rate": lambda lr: [{"match": "*"}],
    "two rates (ResNet-18 recipe)": lambda lr: [{"match": "head"}, {"match": "*", "scale": 0.01}],
    "four rates (ResNet-50 recipe)": lambda lr: [
        {"match": ["head", "features.6", "features.7", "features.8"]},
        {"match": ["features.3", "features.4", "features.5"], "scale": 0.01},
        {"match": ["features.1", "features.2"], "scale": 0.001},
        {"match": "*", "scale": 0.0001},
    ],
    "graded (EfficientNet recipe)": lambda lr: [
        {"match": "features.1", "scale": 0.05},
        {"match": ["features.2", "features.3"], "scale": 0.1},
        {"match": "head"},
        {"match": "*", "scale": 0.01},
    ],
    "layer decay 0.65": lambda lr: [{"match": "*", "layer_decay": 0.65}],
    "inverse decay 0.65": lambda lr: [
        {"match": "head"},
        {"match": "backbone", "geometric": {"from": lr * 0.65, "to": lr * 0.65**9}},
    ],
    "LP-FT": lambda lr: [{"match": "head"}, {"match": "backbone", "freeze": {"epochs": 2}}],
    "find-rates' advice": lambda lr: [],
}
TARGETS = ("natural", "noise", "inversion", "blur", "output shift", "few-shot")


def altered(image: Image.Image, target: str, random: np.random.Generator) -> Image.Image:
    """A photograph as the target shows it."""
    image.thumbnail((2 * SIDE, SIDE) if image.width > image.height else (SIDE, 2 * SIDE))
    if target == "blur":
        return image.filter(ImageFilter.GaussianBlur(3))
    pixels = np.asarray(image, np.float32)
    if target in ("noise", "inversion"):
        pixels = 255 - pixels if target == "inversion" else pixels
        noise = random.normal(0, 102, pixels.shape) * (target == "noise")
        pixels = (pixels + noise).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_set(photos: Path, folder: Path, target: str) -> None:
    """Pack all photographs, altered, as one set."""
    raw, random = folder / "raw" / target, np.random.default_rng(0)
    for path in sorted(photos.glob("*/*/*.jpg")):
        place = raw / path.parent.name / f"{path.stem}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        altered(Image.open(path).convert("RGB"), target, random).save(place)
    pack = [sys.executable, "-m", "worker", "pack", str(raw), str(folder / "sets" / target)]
    subprocess.run(pack, check=True, capture_output=True)
    shutil.rmtree(raw)


class Bench:
    """The runs of one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._folder: Path = options.folder.resolve()
        self._weights = str(Path(options.weights).resolve())
        self._photos = Path(options.photos)
        self._epochs: int = options.epochs
        self._kept = self._folder / "results.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._kept.exists()
        self.results: dict[str, Any] = json.loads(self._kept.read_text()) if kept else {}

    def prepare(self, target: str) -> None:
        """Make the set of a target, unless it is there."""
        source = self._source(target)
        if not (self._folder / "sets" / source / "index.json").exists():
            make_set(self._photos, self._folder, source)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Compute a result, unless it is there."""
        if key not in self.results:
            self.results[key] = compute()
            print(key, self.results[key], flush=True)
            self._kept.write_text(json.dumps(self.results, indent=1))
        return self.results[key]

    def accuracy(self, target: str, plan: str, fold: int) -> float:
        """Train a plan on a target, and return the accuracy on the fold that is held out."""
        rate = self.once(f"{target} | {plan} | rate", lambda: self._rate(target, plan))
        groups = self._groups(target, plan, rate)

        def run() -> float:
            job = self._job(target, f"{target} {plan} {fold}", fold, rate, groups)
            return train(job)

        return float(self.once(f"{target} | {plan} | {fold}", run))

    def _rate(self, target: str, plan: str) -> float:
        """The base rate that find-rates suggests for a plan on a target."""
        groups = self._groups(target, plan, FALLBACK)
        job = self._job(target, f"{target} {plan} rate", 0, FALLBACK, groups)

        def find(connection: Connection) -> None:
            test = run_range_test(
                check_manifest(job, "job"),
                40,
                1e-5,
                high=1.0,
                stop=StopFlag(),
                advance=lambda _: None,
            )
            connection.send(test[1].suggestion or FALLBACK)

        return float(in_child(find))

    def _groups(self, target: str, plan: str, rate: float) -> Groups:
        if plan != "find-rates' advice":
            return PLANS[plan](rate)
        named = self.once(f"{target} | advice", lambda: self._advice(target))
        trained = [{"match": named}] if named else []
        return [{"match": "head"}, *trained, {"match": "*", "freeze": "always"}]

    def _advice(self, target: str) -> list[str]:
        """The blocks that carry signal; the others are frozen."""
        job = self._job(target, f"{target} advice", 0, FALLBACK, [{"match": "*"}])

        def find(connection: Connection) -> None:
            found = run_diagnosis(
                check_manifest(job, "job"), 8, 1, stop=StopFlag(), advance=lambda _: None
            )
            blocks = found[1].blocks[:-1]
            connection.send([block.name for block in blocks if block.signal >= SIGNAL])

        return list(in_child(find))

    def _job(
        self, target: str, name: str, fold: int, rate: float, groups: Groups
    ) -> dict[str, Any]:
        weights = self._weights
        if target == "output shift":
            weights = self.once(f"tuned {fold}", lambda: self._tuned(fold))
        few = target == "few-shot"
        slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
        return {
            "version": 1,
            "job": slug[:60].strip("-"),
            "output": f"{self._folder}/runs/{slug}/",
            "data": {
                "train": f"{self._folder}/sets/{self._source(target)}",
                "fold": {"of": OF, "hold": fold},
                "share": 0.0625 if few else 1.0,  # 10 images of each class
                "image_size": PIXELS,
                "augment": {"crop_scale": [0.35, 1.0]},
            },
            "model": {"backbone": "efficientnet_b0", "weights": weights},
            "optimizer": {"lr": rate, "weight_decay": 1e-5, "groups": groups},
            # The same number of steps: few images are one step per epoch.
            "train": {"epochs": 10 * self._epochs if few else self._epochs, "batch_size": BATCH},
            "checkpoint": {"keep": 1},
        }

    def _tuned(self, fold: int) -> str:
        """Weights fine-tuned on the same images under other class names, except for the fold."""
        groups: Groups = [{"match": "*", "layer_decay": 0.65}]
        job = self._job("natural", f"tuned {fold}", fold, FALLBACK, groups)
        train(job)
        return f"{job['output']}final/model.safetensors"

    @staticmethod
    def _source(target: str) -> str:
        return "natural" if target in ("few-shot", "output shift") else target


def train(job: dict[str, Any]) -> float:
    """Train a job in a child process; return its accuracy after the last epoch."""

    def run(connection: Connection) -> None:
        code = run_job(check_manifest(job, "job"), 1, StopFlag(), live=False)
        connection.send(code)

    code = in_child(run)
    if code:
        return math.nan  # its loss was not finite at that rate
    return float(json.loads(Path(job["output"], "done.json").read_text())["accuracy"])


def in_child(function: Callable[[Connection], None]) -> Any:
    """Call a function in a forked process, which may fork others, and return what it sends."""
    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)

    def call() -> None:
        function(ours)
        leave(0)

    child = context.Process(target=call)
    child.start()
    ours.close()
    try:
        return theirs.recv()
    except EOFError:
        return math.nan
    finally:
        child.join()


def describe(results: dict[str, Any], folds: int) -> str:
    """A row per plan, and the best of each target in bold."""
    rows = [f"| plan | {' | '.join(TARGETS)} | mean |", "|---" * (len(TARGETS) + 2) + "|"]
    table: dict[tuple[str, str], list[float]] = {}
    for target in TARGETS:
        for plan in PLANS:
            keys = [f"{target} | {plan} | {fold}" for fold in range(folds)]
            found = [results[key] for key in keys if key in results]
            table[target, plan] = [value for value in found if not math.isnan(value)]
    best = {
        target: max(
            (statistics.mean(v) for (t, _), v in table.items() if t == target and v), default=0.0
        )
        for target in TARGETS
    }
    for plan in PLANS:
        cells, means = [plan], []
        for target in TARGETS:
            values = table[target, plan]
            if not values:
                cells.append("")
                continue
            mean = statistics.mean(values)
            means.append(mean)
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            text = f"{mean:.3f} ± {error:.3f}"
            cells.append(f"**{text}**" if mean == best[target] else text)
        cells.append(f"{statistics.mean(means):.3f}" if len(means) == len(TARGETS) else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--plans", nargs="*", default=list(PLANS))
    options = parser.parse_args()
    bench = Bench(options)
    for target in options.targets:
        bench.prepare(target)
        for fold in range(options.folds):
            for plan in options.plans:
                bench.accuracy(target, plan, fold)
    print(describe(bench.results, options.folds))


if __name__ == "__main__":
    main()
