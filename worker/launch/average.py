"""The path from several finished models to their mean."""

import contextlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from worker.apply.average_models import (
    NAME,
    average,
    estimate_statistics,
    require_alike,
    write_model,
)
from worker.data.decode_image import MAX_PIXELS, ImageSpec
from worker.data.epoch_plan import EpochPlan, Ids
from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.job.dataset import Dataset
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders, LoadPlan, read_set
from worker.job.open_data import open_data, open_dataset
from worker.launch.start import settle_process
from worker.launch.topology import one_node
from worker.layout import CARD_NAME, FINAL, MANIFEST_NAME
from worker.manifest import Manifest, parse_manifest
from worker.model.classifier import Classifier, load_classifier
from worker.model.weight_means import has_batch_norm
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.process_group import device_of
from worker.store import ObjectMissing, open_store
from worker.store.output_kinds import MODEL, require_no_other_kind
from worker.text import read_text

log = logging.getLogger(__name__)

_LANES = 32


def run_average(
    runs: Sequence[str], out: str, dataset: str | None, advance: Callable[[int, int], None]
) -> None:
    """Average the models of some runs and write the mean to `final/` of an output.

    Args:
        runs: Addresses of the outputs of finished jobs, or of their `final/` folders.
        out: The output.
        dataset: Address of the images for BatchNorm's statistics; None for those that the first run
            was trained on.
        advance: Called with the number of images done in a batch, and of all.

    Raises:
        ConfigurationError: If the models are not alike, started from different random weights, or
            are one and the same, or the output holds a model.
    """
    settle_process()
    Settings.from_env().require_valid()
    store = open_store(out)
    with contextlib.suppress(ObjectMissing):
        store.get(FINAL + CARD_NAME, 0, 1)
        raise ConfigurationError(f"--out: {store.uri} already holds a model; use another --out")
    require_no_other_kind(store, MODEL, "use another --out")
    models = [load_classifier(run) for run in runs]
    require_alike(models)
    _require_common_start(models)
    mean = average(models)
    if has_batch_norm(mean.model):
        images, ids = _images(models[0], dataset)
        _estimate(mean, images, ids, lambda done: advance(done, len(ids)))
    write_model(mean, [model.address for model in models], store)


def _require_common_start(models: Sequence[Classifier]) -> None:
    """Raise `ConfigurationError` for models that have no weights in common to start from.

    Only weights that were fine-tuned from the same ones lie close enough for a useful mean
    (Neyshabur, Sedghi and Zhang, "What is being transferred in transfer learning?", 2020).
    """
    addresses = [model.address.rstrip("/").removesuffix("/final") for model in models]
    twice = next((a for n, a in enumerate(addresses) if a in addresses[:n]), None)
    if twice:
        raise ConfigurationError(f"{twice}: is listed twice; list each run once")
    starts = {}
    for address, model in zip(addresses, models, strict=True):
        with contextlib.suppress(ConfigurationError):  # of another origin, or a mean itself
            manifest = _manifest_of(model)
            chance = "" if manifest.model.pretrained else f" of train.seed {manifest.train.seed}"
            starts[address] = f"{manifest.model.weights}{chance}"
    if len(set(starts.values())) > 1:
        told = "; ".join(f"{address}: {start}" for address, start in starts.items())
        if any(start.startswith("none of") for start in starts.values()):
            raise ConfigurationError(
                f"the models began with different weights, so their mean is useless ({told}); "
                "average runs with the same model.weights"
            )
        log.warning("the models began with weights of different addresses (%s)", told)


def _estimate(mean: Classifier, images: Dataset, ids: Ids, advance: Callable[[int], None]) -> None:
    (rank,) = one_node(1).ranks()
    device, preprocessing = device_of(rank), mean.card.preprocessing
    torch.set_num_threads(cores_per_rank(rank))
    plan = LoadPlan(
        sets={NAME: read_set(images, _LANES)},
        feed=EvaluationFeed(preprocessing, on_gpu=device.type == "cuda"),
        spec=ImageSpec(MAX_PIXELS, images.index.depth or preprocessing.depth),
        size=preprocessing.crop_size,
        lanes=_LANES,
    )
    with contextlib.closing(Loaders(plan, rank, device)) as loaders:
        mean.model.to(device).to(memory_format=torch.channels_last)
        estimate_statistics(mean, loaders, ids, advance)


def _images(model: Classifier, dataset: str | None) -> tuple[Dataset, Ids]:
    """Return the images for the statistics, in an order that mixes them.

    Without an address, these are the images that the model was trained on, each once.
    """
    if dataset:
        images = open_dataset("--data", dataset)
        known = np.arange(images.samples)
    else:
        data = open_data(_manifest_of(model))
        images = data.train
        known = np.arange(images.samples)
        if data.multiplicities:
            known = np.sort(data.multiplicities.ids)
    plan = EpochPlan(images.index.counts, _LANES, seed=0, epoch=0)
    order = np.concatenate([plan.batch(step) for step in range(plan.steps)])
    return images, order[np.isin(order, known)]


def _manifest_of(model: Classifier) -> Manifest:
    """Return the manifest beside a model."""
    output = open_store(model.address.rstrip("/").removesuffix("final"))
    try:
        text = read_text(output.get(MANIFEST_NAME))
    except ObjectMissing as error:
        raise ConfigurationError(f"--data: {error}; give the training set") from None
    return parse_manifest(text, f"{output.uri}{MANIFEST_NAME}")
