"""`final/README.md`: what a model is, what it learned from, how good it is, and how to load it."""

from collections.abc import Sequence

import torch
import torchvision

from worker import __version__
from worker.job.job import Job
from worker.judge.figure_text import METRIC_NAMES, number_text, share_text
from worker.judge.final_figures import FinalFigures
from worker.judge.judgment import Judgment
from worker.model.model_card import Card
from worker.model.skeleton import family_options
from worker.redaction import redacted

_MAX_CLASSES = 30
_LOAD = """\
```python
import json, torch, torchvision
from safetensors.torch import load_file
from torchvision.transforms import v2 as transforms

card = json.load(open("model.json"))
model = torchvision.models.get_model(card["backbone"]{options}, num_classes=len(card["classes"]))
model.load_state_dict(load_file("model.safetensors"))
size = card["preprocessing"]
prepare = transforms.Compose([
    transforms.PILToTensor(),
    transforms.Resize(size["resize_size"], transforms.InterpolationMode(size["interpolation"])),
    transforms.CenterCrop(size["crop_size"]),
    transforms.ToDtype(torch.float32, scale=True),
    transforms.Normalize(size["mean"], size["std"]),
])
```

Then `model.eval()(prepare(image)[None]) / card["temperature"]` are the logits of a `PIL.Image`
in RGB."""


def describe_model(job: Job, card: Card, figures: FinalFigures) -> str:
    """Return the model card as Markdown.

    Args:
        job: The job that trained the model.
        card: What is needed to use the model.
        figures: Its figures.
    """
    model, train = job.manifest.model, job.manifest.train
    weights = redacted(model.pretrained) if model.pretrained else "random weights"
    parts = [
        f"# {job.manifest.job}",
        f"A `{card.backbone}` that tells {len(card.classes):,} classes apart in images of "
        f"{card.preprocessing.crop_size} pixels, fine-tuned from {weights} by worker "
        f"{__version__}, torch {torch.__version__} and torchvision {torchvision.__version__}.",
        "## Figures",
        *_figures("validation", figures.validation),
        *_figures("test", figures.test),
    ]
    if not figures.validation and not figures.test:
        parts.append("The model was not evaluated: the job had no validation and no test set.")
    if figures.blend is not None:
        parts.append(
            f"The weights are {figures.blend:.0%} those of step {figures.step}, and for the rest "
            "those of the step that released the backbone (WiSE-FT)."
        )
    if figures.temperature != 1:
        parts.append(f"Logits are divided by a temperature of {figures.temperature:g}.")
    parts += [*_thresholds(figures), "## Data", _data(job), "## Training", _rates(job)]
    parts.append(
        f"{train.epochs} epochs of {job.steps_per_epoch} steps with {train.batch_size} images "
        f"each, `{job.manifest.optimizer.name}`, seed {train.seed}; the weights are those of "
        f"{figures.source}. `manifest.json` beside this folder has all settings."
    )
    parts += ["## Load it", _LOAD.format(options=_options(card))]
    return "\n\n".join(parts) + "\n"


def _options(card: Card) -> str:
    """Return the arguments that torchvision's constructor needs, as source code."""
    found = family_options(card.backbone, card.preprocessing.crop_size)
    return "".join(f", {name}={value}" for name, value in found.items())


def _figures(name: str, judgment: Judgment | None) -> list[str]:
    if judgment is None:
        return []
    rows = [
        ("accuracy", share_text(judgment.accuracy)),
        ("top-5 accuracy", share_text(judgment.top5_accuracy)),
        (METRIC_NAMES["balanced_accuracy"], share_text(judgment.balanced_accuracy)),
        (METRIC_NAMES["macro_f1"], share_text(judgment.macro_f1)),
        (METRIC_NAMES["macro_auroc"], share_text(judgment.macro_auroc)),
        ("log loss", number_text(judgment.log_loss)),
        ("calibration error", share_text(judgment.calibration_error)),
    ]
    worst = sorted(
        (one for one in judgment.classes if one.support), key=lambda one: one.f1.value or 0.0
    )[:_MAX_CLASSES]
    by_class = [
        (one.name, str(one.support), *map(share_text, (one.precision, one.recall, one.f1)))
        for one in worst
    ]
    title = f"On the {judgment.images:,} images of the {name} set, with 95% intervals:"
    return [
        title,
        _table(("figure", name), [row for row in rows if row[1] != "-"]),
        _table(("class, worst first", "images", "precision", "recall", "F1"), by_class),
    ]


def _thresholds(figures: FinalFigures) -> list[str]:
    if not figures.thresholds:
        return []
    rows = [
        (
            one.name,
            "none reaches it" if one.probability is None else f"{one.probability:.4f}",
            share_text(one.precision),
            share_text(one.recall),
        )
        for one in figures.thresholds[:_MAX_CLASSES]
    ]
    return [
        "The probability from which each class is as precise as `final.thresholds` demands, on the "
        "validation set:",
        _table(("class", "threshold", "precision", "recall"), rows),
    ]


def _data(job: Job) -> str:
    sets = (("training", job.train), ("validation", job.val), ("test", job.test))
    rows = [
        (name, f"{found.samples:,}", f"`{redacted(found.store.uri)}`", found.identity)
        for name, found in sets
        if found
    ]
    return _table(("set", "images", "address", "identity"), rows)


def _rates(job: Job) -> str:
    rows = [
        (group.name, " ".join(group.match), f"{job.peak(group):.3g}", f"{len(group.parameters)}")
        for group in job.groups
    ]
    return _table(("group", "parameters that match", "highest rate", "tensors"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )
