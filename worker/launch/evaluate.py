"""The path from a finished model and a data set to its judgment, on all ranks of a place."""

import contextlib
import json
import logging
import os
import socket

import torch

from worker.apply.evaluate_model import NAME, ModelEvaluation, evaluate_model
from worker.apply.evaluation_record import EvaluationRecord
from worker.apply.match_classes import match_classes
from worker.checkpoint.output_owner import IDENTITY
from worker.data.decode_image import MAX_PIXELS, ImageSpec
from worker.environment import Settings
from worker.errors import ConfigurationError, DataError
from worker.job.dataset import Dataset
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders, LoadPlan, read_set
from worker.job.open_data import open_dataset
from worker.judge.judgment import judge
from worker.launch.guard import exit_code
from worker.launch.launchers import detect
from worker.launch.spawn import run_ranks
from worker.launch.start import settle_process
from worker.layout import JUDGMENT_NAME
from worker.logs import bind, end_live, show_live
from worker.model.classifier import Classifier, load_classifier
from worker.plain import plain
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.peer_liveness import Liveness
from worker.ranks.process_group import device_of, meaningful_errors, process_group
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog, end_after
from worker.report.evaluation_page import describe_evaluation, evaluation_page
from worker.store import ObjectMissing, open_store
from worker.store.json_records import get_json

log = logging.getLogger(__name__)

_LANES = 32  # processes of a rank that may decode; see `decoding_of`


def run_evaluation(
    model: str, dataset: str, out: str | None, *, nproc: int | None, stop: StopFlag, live: bool
) -> int:
    """Evaluate a model on all ranks of this node, and show and write its figures.

    Args:
        model: Address of the output of a finished job, or of its `final/` folder.
        dataset: Address of an indexed data set.
        out: Prefix to write `judgement.json` and `judgement.html` to; None to write nothing.
        nproc: The number of ranks on this node; None for one per GPU.
        stop: The flag that a stop signal sets.
        live: Whether to show a live progress line on the terminal.

    Returns:
        The exit code.

    Raises:
        WorkerError: If the model, the data set or the place does not fit.
    """
    place = detect(os.environ, settle_process(), nproc)
    Settings.from_env().require_valid()
    classifier = load_classifier(model)
    opened = open_dataset("DATASET", dataset)
    match = match_classes(classifier.card.classes, opened.index.classes)
    if place.leads and match.unknown:
        log.warning(
            "classes that the model does not know: %s%s; their images are left out",
            ", ".join(match.unknown[:10]),
            ", …" if len(match.unknown) > 10 else "",
        )
    identity = classifier.card.metrics.get(IDENTITY)
    trained_on = identity.get("data.train") if isinstance(identity, dict) else None
    if place.leads and trained_on == opened.index.identity:
        log.warning("the model was trained on this set; its figures will be optimistic")
    if out:
        _require_free(out, classifier, opened)

    def run(rank: Rank, listener: socket.socket | None) -> None:
        _evaluate(classifier, opened, rank, listener, out=out, stop=stop, live=live)

    if isinstance(place, Rank):
        stop.has_begun = True
        return exit_code(lambda: run(place, None))
    return run_ranks(place, run, stop)


def _require_free(out: str, classifier: Classifier, dataset: Dataset) -> None:
    """Raise `ConfigurationError` if the output holds the judgment of another model or set."""
    store = open_store(out)
    try:
        found = get_json(store, JUDGMENT_NAME, EvaluationRecord, 1 << 28)
    except ObjectMissing:
        return
    own = (classifier.card.sha256, dataset.index.identity)
    if found and (found.model_sha256, found.identity) != own:
        raise ConfigurationError(
            f"--out: {store.uri} holds the judgment of another model or set; use another --out"
        )


def load_plan(
    classifier: Classifier, dataset: Dataset, device: torch.device
) -> LoadPlan[EvaluationFeed]:
    """Return how a data set is loaded for a model."""
    preprocessing = classifier.card.preprocessing
    return LoadPlan(
        sets={NAME: read_set(dataset, 1)},
        feed=EvaluationFeed(preprocessing, on_gpu=device.type == "cuda"),
        spec=ImageSpec(MAX_PIXELS, dataset.index.depth or preprocessing.depth),
        size=preprocessing.crop_size,
        lanes=_LANES,
    )


def _evaluate(
    classifier: Classifier,
    dataset: Dataset,
    rank: Rank,
    listener: socket.socket | None,
    *,
    out: str | None,
    stop: StopFlag,
    live: bool,
) -> None:
    bind(rank=rank.rank)
    torch.set_num_threads(cores_per_rank(rank))
    settings, device = Settings.from_env(), device_of(rank)
    # The loaders fork processes, so they come before the process group, which initializes CUDA.
    with contextlib.ExitStack() as stack:
        plan = load_plan(classifier, dataset, device)
        loaders = stack.enter_context(contextlib.closing(Loaders(plan, rank, device)))
        stack.enter_context(process_group(rank, listener, stop))
        watchdog = Watchdog(settings.stall_seconds, rank.rank, lambda _: None)
        stack.callback(watchdog.close)
        liveness = Liveness(_end_without, settings.collective_seconds)
        stack.callback(liveness.abandon)
        stack.enter_context(meaningful_errors())
        progress = _Progress(dataset, rank, watchdog, live=live)
        found = evaluate_model(
            classifier,
            dataset,
            rank=rank,
            loaders=loaders,
            stopped=lambda: stop.requested,
            advance=progress.advance,
        )
        progress.close()
        if rank.leads:
            _write(classifier, dataset, found, out)
        liveness.close()


def _end_without(gone: int) -> None:
    log.error("lost rank %d", gone)
    end_after(lambda: None)


class _Progress:
    """A live line on a terminal, which follows the images of rank 0."""

    def __init__(self, dataset: Dataset, rank: Rank, watchdog: Watchdog, *, live: bool) -> None:
        self._total = dataset.index.samples
        self._ranks = rank.world_size
        self._live = live and rank.leads
        self._watchdog = watchdog
        self._done = 0

    def advance(self, images: int) -> None:
        """Note images that have been evaluated on this rank."""
        self._watchdog.beat()
        self._done += images
        if self._live:
            done = min(self._total, self._done * self._ranks)
            show_live(f"evaluating {done:,} of {self._total:,} images")

    def close(self) -> None:
        """Remove the line."""
        if self._live:
            end_live()


def _write(
    classifier: Classifier, dataset: Dataset, found: ModelEvaluation, out: str | None
) -> None:
    card = classifier.card
    judgment = judge(found.findings.tally, card.classes)
    record = EvaluationRecord(
        model=classifier.address,
        model_sha256=card.sha256,
        dataset=dataset.store.uri,
        identity=dataset.index.identity,
        temperature=card.temperature,
        left_out=found.left_out,
        absent=tuple(one.name for one in judgment.classes if not one.support),
        bad_samples=found.bad_samples,
        judgment=judgment,
    )
    if not record.judgment.images:
        raise DataError(
            f"{dataset.store.uri}: no image could be evaluated: {len(record.bad_samples)} are bad, "
            f"{sum(record.left_out.values())} of unknown classes, "
            f"{record.judgment.not_finite} have predictions that are not finite"
        )
    print(describe_evaluation(record))
    if not out:
        return
    store = open_store(out)
    data = json.dumps(plain(record.model_dump()), indent=1).encode()
    store.put(JUDGMENT_NAME, data)
    page = evaluation_page(record, found.findings, found.pictures)
    store.put("judgement.html", page.encode())
    print(f"written: {store.uri}judgement.json, {store.uri}judgement.html")
