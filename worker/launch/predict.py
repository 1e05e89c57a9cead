"""The path from a finished model and a set of images to their predictions.

The ranks of a prediction exchange nothing: each takes parts from the store. So there is no
rendezvous, and starters on other machines may come and go.
"""

import contextlib
import json
import logging
import os
import random
import socket
import time
from dataclasses import dataclass

import torch

from worker.apply.predict_parts import NAME, Share, predict_parts
from worker.apply.prediction_files import require_format
from worker.apply.prediction_index import (
    PredictionIndex,
    read_prediction_index,
    write_prediction_index,
)
from worker.apply.prediction_plan import (
    Format,
    PredictionPlan,
    read_plan,
    require_same,
)
from worker.apply.prediction_source import find_images, open_images, source_of
from worker.charts import duration
from worker.data.decode_image import MAX_PIXELS, ImageSpec
from worker.environment import Settings
from worker.errors import DataError, InfrastructureError, StopRequested
from worker.job.evaluation_feed import EvaluationFeed
from worker.job.loaders import Loaders, LoadPlan, ReadSet
from worker.launch.guard import exit_code
from worker.launch.launchers import detect, without_peers
from worker.launch.spawn import run_ranks
from worker.launch.start import settle_process
from worker.launch.topology import Spawn, one_node
from worker.layout import PREDICTION_NAME
from worker.logs import bind, count, end_live, show_live
from worker.metrics.exporters import announce, exported
from worker.metrics.registry import Metrics
from worker.metrics.run_labels import Owner
from worker.metrics.shared_outcome import SharedOutcome
from worker.model.classifier import Classifier, load_classifier
from worker.ranks.cpu_cores import cores_per_rank
from worker.ranks.process_group import device_of
from worker.ranks.rank import Rank
from worker.ranks.stop_signal import StopFlag
from worker.ranks.watchdog import Watchdog
from worker.store import Store, open_store
from worker.store.output_kinds import PREDICTION, require_no_other_kind
from worker.store.traffic_counts import listen

log = logging.getLogger(__name__)

JOB = "predict"
"""The job name in logs and metrics."""
_LANES = 32
_INDEX_SECONDS = 300.0  # that ranks other than the leading one wait for the index
_LINE_SECONDS, _LIVE_SECONDS = 5.0, 0.2


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """The contents of the results, for each image."""

    top: int | None
    """Classes per image; None for all."""
    format: Format
    embeddings: bool
    """Whether the features before the head are written, too."""


def run_prediction(
    model: str,
    source: str,
    out: str,
    options: PredictionOptions,
    *,
    nproc: int | None,
    stop: StopFlag,
    live: bool,
) -> int:
    """Predict a set of images on all ranks of this node, together with any other starters.

    Args:
        model: Address of the output of a finished job, or of its `final/` folder.
        source: Address of the images.
        out: Prefix to write the results to.
        options: What is written for each image.
        nproc: The number of ranks on this node; None for one per GPU.
        stop: The flag that a stop signal sets.
        live: Whether to show a live progress line on the terminal.

    Returns:
        The exit code.

    Raises:
        WorkerError: If the model, the images or the place does not fit.
    """
    place = _alone(detect(without_peers(os.environ), settle_process(), nproc))
    Settings.from_env().require_valid()
    require_format(options.format)
    bind(job=JOB)
    store, outcome, own = open_store(out), SharedOutcome(), os.getpid()
    classifier = load_classifier(model)

    def work() -> int:
        plan = _settle_plan(classifier, source, store, options)
        opened = open_images(plan, store)
        log.info("%s in %s", count(plan.images, "image"), count(len(plan.parts), "part"))

        def run(rank: Rank, listener: socket.socket | None) -> None:
            if listener:  # these ranks have no rendezvous
                listener.close()
            job = _Prediction(classifier, images=opened, plan=plan, out=store, rank=rank, stop=stop)
            job.run(outcome, live=live)

        if isinstance(place, Rank):
            stop.has_begun = True
            return exit_code(lambda: run(place, None))
        return run_ranks(place, run, stop)

    code = exit_code(work)
    if place.leads and os.getpid() == own:
        announce(Owner(JOB, store.uri), code, outcome, stop.patience)
    return code


def _alone(place: Rank | Spawn) -> Rank | Spawn:
    """Return the ranks of this node as if there were no other."""
    return one_node(place.local_world_size) if isinstance(place, Spawn) else place


def _settle_plan(
    classifier: Classifier, source: str, out: Store, options: PredictionOptions
) -> PredictionPlan:
    """Return the plan in the output, after writing it if this is the first starter."""
    wanted = PredictionPlan(
        model=classifier.address,
        model_sha256=classifier.card.sha256,
        source=source_of(source),
        kind="set",
        identity="",
        top=options.top,
        format=options.format,
        embeddings=options.embeddings,
        parts=(),
    )
    plan = read_plan(out)
    if plan is None:
        require_no_other_kind(out, PREDICTION, "use another --out")
        found = find_images(source, out)
        fresh = wanted.model_copy(update=vars(found))
        out.put_if_absent(PREDICTION_NAME, json.dumps(fresh.model_dump(), indent=1).encode())
        plan = read_plan(out)
    if plan is None:
        raise InfrastructureError(f"{out.uri}{PREDICTION_NAME}: cannot be read back as written")
    require_same(plan, wanted, out)
    return plan


class _Prediction:
    """The work of one rank."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        images: tuple[ReadSet, int | None],
        plan: PredictionPlan,
        out: Store,
        rank: Rank,
        stop: StopFlag,
    ) -> None:
        self._classifier = classifier
        self._images, self._depth = images
        self._plan = plan
        self._out = out
        self._rank = rank
        self._stop = stop

    def run(self, outcome: SharedOutcome, *, live: bool) -> None:
        """Predict this rank's share, and write the index once all parts are published."""
        rank, device = self._rank, device_of(self._rank)
        bind(rank=rank.rank)
        torch.set_num_threads(cores_per_rank(rank))
        with contextlib.ExitStack() as stack:
            loaders = stack.enter_context(contextlib.closing(self._loaders(device)))
            if device.type == "cuda":
                torch.cuda.set_device(device)
            owner = Owner(JOB, self._out.uri)
            metrics = Metrics(JOB, self._out.uri, rank.rank)
            listen(metrics)
            stack.enter_context(
                exported(
                    metrics,
                    owner,
                    rank.rank,
                    local_rank=rank.local_rank,
                    outcome=outcome,
                    patience=self._stop.patience,
                )
            )
            watchdog = Watchdog(Settings.from_env().stall_seconds, rank.rank, lambda _: None)
            stack.callback(watchdog.close)
            progress = _Progress(self._plan, rank, metrics, watchdog, live=live)
            stack.callback(progress.close)
            loaders.start()
            model = self._classifier.model.to(device).to(memory_format=torch.channels_last)
            model.eval()
            share = Share(
                plan=self._plan,
                out=self._out,
                rank=rank,
                stopped=lambda: self._stop.requested,
                advance=progress.advance,
                published=progress.published,
            )
            predict_parts(self._classifier, loaders, share)
            progress.close()
            index = self._index(watchdog)
            metrics.last_success().set(time.time())
            if rank.leads:
                _tell(index, self._out)
            if index.bad == index.images:
                raise DataError(
                    f"{self._plan.source}: none of its images can be used; the lines in "
                    f"{self._out.uri}predictions/ say why"
                    if rank.leads
                    else ""
                )

    def _index(self, watchdog: Watchdog) -> PredictionIndex:
        """Return the index, which one rank of those that end together has to write.

        The others wait for it: their starter would take the first that ends as a sign that all do.
        """

        def beat() -> None:
            watchdog.beat()
            if self._stop.requested:
                raise StopRequested("stopped on request; start again to write the index")

        # Starters elsewhere end at the same time: whoever is first spares the others the reading.
        wait = random.uniform(0, 3) if self._rank.leads else _INDEX_SECONDS  # noqa: S311
        turn = time.monotonic() + wait
        while time.monotonic() < turn:
            found = read_prediction_index(self._out)
            if found:
                return found
            beat()
            time.sleep(0.3 if self._rank.leads else 1)
        return write_prediction_index(self._plan, self._out, beat)

    def _loaders(self, device: torch.device) -> Loaders[EvaluationFeed]:
        preprocessing = self._classifier.card.preprocessing
        plan = LoadPlan(
            sets={NAME: self._images},
            feed=EvaluationFeed(preprocessing, on_gpu=device.type == "cuda"),
            spec=ImageSpec(MAX_PIXELS, self._depth or preprocessing.depth),
            size=preprocessing.crop_size,
            lanes=_LANES,
        )
        return Loaders(plan, self._rank, device)


class _Progress:
    """The progress of a rank: metrics, and a live line or log lines on rank 0."""

    def __init__(
        self,
        plan: PredictionPlan,
        rank: Rank,
        metrics: Metrics,
        watchdog: Watchdog,
        *,
        live: bool,
    ) -> None:
        self._plan = plan
        self._rank = rank
        self._metrics = metrics
        self._watchdog = watchdog
        self._live = live
        self._parts = 0
        self._images = 0
        self._began = time.monotonic()
        self._next = self._began + _LINE_SECONDS
        metrics.steps().set(len(plan.parts))

    def advance(self, images: int, bad: int) -> None:
        """Note images that this rank has predicted, and how many of them were bad."""
        self._watchdog.beat()
        self._images += images
        seconds = max(1e-9, time.monotonic() - self._began)
        metrics = self._metrics
        metrics.samples().inc(images)
        metrics.last_step().set(time.time())
        metrics.throughput().set(self._images / seconds * self._rank.world_size)
        if bad:
            metrics.bad_samples("undecodable").inc(bad)
        if self._rank.leads and time.monotonic() >= self._next:
            self._next = time.monotonic() + (_LIVE_SECONDS if self._live else _LINE_SECONDS)
            self._show(self._images / seconds)

    def published(self, parts: int) -> None:
        """Note how many parts are published, by whomever."""
        self._watchdog.beat()
        self._parts = parts
        self._metrics.step().set(parts)

    def close(self) -> None:
        """Remove the live line."""
        if self._live and self._rank.leads:
            end_live()

    def _show(self, speed: float) -> None:
        total = len(self._plan.parts)
        left = self._plan.images * (1 - self._parts / total) / (speed * self._rank.world_size)
        text = (
            f"{self._parts} of {total} parts  {speed:.0f} img/s on this rank  "
            f"left {duration(left)} at most"
        )
        show_live(text) if self._live else log.info("%s", text)


def _tell(index: PredictionIndex, out: Store) -> None:
    bad = f", but {index.bad} could not be used" if index.bad else ""
    log.info("done: %s%s, in %spredictions/", count(index.images, "image"), bad, out.uri)
