"""A worker of a sweep: takes one trial after another, until none is left.

Any number of workers run the same command and share only the store. Each trains a trial in
a child process, exactly as `worker train` would, up to the epoch at which trials are compared.
"""

import json
import logging
import multiprocessing
import os
import random
import signal
import time

from worker.environment import Settings
from worker.errors import (
    ConfigurationError,
    ExitCode,
    StopRequested,
    WorkerError,
    error_of,
    exit_code_of,
)
from worker.forks import STOP_SIGNALS, die_with
from worker.launch.guard import exit_code, leave
from worker.launch.launchers import detect, without_peers
from worker.launch.requirements import check_place
from worker.launch.start import run_job, settle_process
from worker.launch.sweep_plan import plan_sweep
from worker.launch.topology import Spawn
from worker.layout import SWEEP_NAME
from worker.logs import bind, count
from worker.manifest import Manifest
from worker.ranks.stop_signal import StopFlag
from worker.store import Store, open_store
from worker.sweep.best import best_of, describe_best
from worker.sweep.claims import Claims
from worker.sweep.manifest import SweepManifest
from worker.sweep.plan import (
    BEST_NAME,
    SweepPlan,
    Unit,
    UnitResult,
    require_own_output,
    standing,
)
from worker.sweep.results import ResultReader, has_failed, measure_unit, write_result

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_MIN_WAIT, _MAX_WAIT = 0.5, 10.0


def run_sweep(sweep: SweepManifest, nproc: int | None, stop: StopFlag) -> int:
    """Run trials until the sweep is done, together with any other workers.

    Args:
        sweep: The manifest of the sweep.
        nproc: The number of ranks that train a trial; None for one per GPU.
        stop: The flag that a stop signal sets.

    Returns:
        The exit code.

    Raises:
        WorkerError: If the manifest or the place does not fit, or a trial cannot be run here.
    """
    gpus = settle_process()
    place = detect(without_peers(os.environ), gpus, nproc)
    if not isinstance(place, Spawn) or place.nodes > 1:
        raise ConfigurationError(
            "a worker of a sweep starts the ranks of its trials itself: start one per node (with "
            "srun, --ntasks-per-node=1), and as many as there are nodes"
        )
    Settings.from_env().require_valid()
    bind(job=sweep.sweep)
    plan, store = plan_sweep(sweep, place.local_world_size), open_store(sweep.output)
    for trial in range(len(plan.trials)):
        check_place(plan.job_manifest(trial, 0, sweep.output), gpus)
    settled = _settle(plan, store)
    worker = _Worker(settled, store, place.local_world_size, stop)
    stop.has_begun = True
    worker.run()
    return ExitCode.DONE


def _settle(plan: SweepPlan, store: Store) -> SweepPlan:
    """Return the plan in the output, after writing it if this is the first worker."""
    found = require_own_output(plan, store)
    if found is None:
        data = json.dumps(plan.model_dump(), indent=1).encode()
        store.put_if_absent(SWEEP_NAME, data)
        found = require_own_output(plan, store)
    if found is None:
        raise error_of(ExitCode.INFRASTRUCTURE)
    return found


class _Worker:
    def __init__(self, plan: SweepPlan, store: Store, ranks: int, stop: StopFlag) -> None:
        self._plan = plan
        self._store = store
        self._ranks = ranks
        self._stop = stop
        self._claims = Claims(store, Settings.from_env().takeover_seconds)
        self._results = ResultReader(store)

    def run(self) -> None:
        """Take units until none is left; raise `StopRequested` if a stop comes first."""
        wait, told = _MIN_WAIT, 0
        while True:
            results = self._results.read()
            now = standing(self._plan, results)
            if not now.pending:
                self._finish(results)
                return
            free = self._claims.free(now.pending)
            if free:
                wait = _MIN_WAIT
                self._take(random.choice(free))  # noqa: S311 -- others look at the same list
                continue
            if wait >= _MAX_WAIT / 2 and told != len(now.pending):
                told = len(now.pending)
                log.info(
                    "waiting for %s that others run; one that is not heard of for %d s is taken "
                    "over",
                    count(told, "run"),
                    Settings.from_env().takeover_seconds,
                )
            self._sleep(wait)
            wait = min(_MAX_WAIT, 1.5 * wait)

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._require_no_stop()
            time.sleep(min(_POLL_SECONDS, max(0.0, ends - time.monotonic())))

    def _require_no_stop(self) -> None:
        if self._stop.requested:
            raise StopRequested("stopped on request; run it again to continue the sweep")

    def _take(self, unit: Unit) -> None:
        self._require_no_stop()
        with self._claims.hold(unit) as mine:
            # Between looking for a result and claiming the unit, another worker may have ended it.
            if mine and not self._results.has(unit):
                self._run(unit)

    def _run(self, unit: Unit) -> None:
        """Run a unit in a child process, and write its result."""
        plan, until = self._plan, self._plan.rungs[unit.rung]
        manifest = plan.job_manifest(unit.trial, unit.repeat, self._store.uri)
        shown = ", ".join(f"{p} {v}" for p, v in plan.settings(unit.trial, unit.repeat).items())
        log.info("trial %d up to epoch %d: %s", unit.trial, until, shown)
        code = self._train(manifest, until)
        job = open_store(manifest.output)
        if code in (ExitCode.DONE, ExitCode.STOPPED):
            result = measure_unit(plan, unit, job)
            if result:
                write_result(self._store, unit, result)
                return
            self._require_no_stop()
            raise StopRequested(f"trial {unit.trial} was stopped; run it again to continue")
        if code == ExitCode.SUPERSEDED:  # taken for lost, and taken over
            log.warning("trial %d is now run by another worker", unit.trial)
            return
        # Anything else, such as wrong credentials, says nothing about the settings of the trial.
        if has_failed(job):
            log.warning("trial %d has failed with exit code %d; it is given up", unit.trial, code)
            write_result(self._store, unit, UnitResult(code=code))
            return
        self._require_no_stop()
        raise type(error_of(code))(f"trial {unit.trial} ended with exit code {code}; see above")

    def _train(self, manifest: Manifest, until: int) -> int:
        """Train a job up to an epoch in a child process; return its exit code."""
        context = multiprocessing.get_context("fork")
        child = context.Process(
            target=_child, args=(os.getpid(), manifest, self._ranks, until, self._stop)
        )
        # As for the ranks of a job: a signal that arrives during the fork would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        child.start()

        def forward(number: int) -> None:
            if child.pid and child.is_alive():
                os.kill(child.pid, signal.SIGTERM if number == signal.SIGINT else number)

        self._stop.listener = forward
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if self._stop.requested:
            forward(signal.SIGTERM)
        while child.is_alive():
            child.join(_POLL_SECONDS)
            try:
                self._claims.beat()
            except WorkerError as error:  # the trial itself decides whether it can continue
                log.warning("%s", error)
        self._stop.listener = None
        return exit_code_of(child.exitcode or 0)

    def _finish(self, results: dict[Unit, UnitResult]) -> None:
        best = best_of(self._plan, results)
        if best is None:
            raise ConfigurationError(
                f"none of {count(len(self._plan.trials), 'trial')} has a figure to compare: they "
                f"have failed, or {self._plan.metric} is not defined; `worker status "
                f"{self._store.uri}` lists them"
            )
        self._store.put_if_absent(BEST_NAME, json.dumps(best.model_dump(), indent=1).encode())
        log.info("the sweep is done: %s", describe_best(self._plan, best))


def _child(parent: int, manifest: Manifest, ranks: int, until: int, flag: StopFlag) -> None:
    die_with(parent)
    stop = StopFlag(parent=flag)
    stop.install()
    # A terminal sends SIGINT to the entire process group; the parent forwards it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for name in set(os.environ) - set(without_peers(os.environ)):
        del os.environ[name]
    leave(exit_code(lambda: run_job(manifest, ranks, stop, live=False, until=until)))
