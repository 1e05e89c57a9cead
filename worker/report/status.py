"""The state of a run, from its store alone: `worker status`."""

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import bar, duration
from worker.checkpoint.claim import AttemptRecord, attempt_numbers, read_attempt
from worker.checkpoint.commit import list_commits, read_commit_record
from worker.checkpoint.publication_record import Done, read_done
from worker.errors import ConfigurationError, ExitCode
from worker.judge.figure_text import METRIC_NAMES, metric_text
from worker.judge.final_figures import describe_source
from worker.judge.measure import Measure
from worker.layout import COMMITS, attempt_name, environment_name, progress_name
from worker.logs import count
from worker.manifest.training import Metric
from worker.record.cost import cost_of, describe_cost
from worker.record.history import read_history
from worker.record.journal import PROGRESS_SECONDS
from worker.record.progress_record import End, ProgressRecord
from worker.report.record_schemas import EnvironmentRecord
from worker.store import ObjectMissing, Store
from worker.store.json_records import get_json
from worker.store.sweep_hint import sweep_hint

_SILENT_SECONDS = 3 * PROGRESS_SECONDS  # one lost report does not make a run silent
_SILENCE = "no heartbeat: the run was killed, or is cut off from its storage"
_STATES: dict[int, str] = {ExitCode.STOPPED: "stopped", ExitCode.SUPERSEDED: "superseded"}


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a run; fields that are not known (yet) are None."""

    job: str
    """The name of the job."""
    run: str
    """The address of its output."""
    state: str
    """`done`, `running`, `stopped`, `superseded`, `failed (CODE)` or `silent`."""
    text: str
    """The reason why the attempt ended; empty if it did not record one."""
    attempt: int
    """The number of the newest attempt."""
    ranks: int | None
    """The number of ranks."""
    step: int
    """The number of completed steps."""
    total_steps: int | None
    """The total number of steps of the job."""
    epoch: int | None
    """The epoch, from 1."""
    loss: float | None
    """Training loss."""
    accuracy: float | None
    """Accuracy of the last evaluation."""
    metric: Metric
    """The figure that decides which weights are best."""
    value: Measure
    """That figure in the last evaluation, with its 95% interval."""
    best: float | None
    """Its best value so far."""
    images_per_second: float | None
    """The throughput; None unless the run is in progress."""
    expected_end: float | None
    """The expected end, in seconds of Unix time."""
    committed: int | None
    """The step of the last checkpoint."""
    commit_age: float | None
    """Seconds since the last checkpoint."""
    checkpoint_seconds: float | None
    """Time from one checkpoint to the next, as set or chosen."""
    age: float
    """Seconds since the run last reported."""
    final: str
    """Which weights `final/` has, with their accuracy, as text; empty if there are none yet."""
    cost: str
    """What all attempts have cost, as text; empty if nothing is known."""

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON data."""
        return {**asdict(self), "value": self.value.model_dump()}


def read_status(store: Store) -> Status:
    """Return the state of a run, using few requests.

    Raises `ConfigurationError` if there is no run.
    """
    numbers = attempt_numbers(store)
    if not numbers:
        raise ConfigurationError(
            f"{store.uri}: holds no run; "
            f"{sweep_hint(store, 'pass the output of a job that has been started')}"
        )
    # Lazy, so usually only the newest record is read; older ones are needed if it is damaged.
    claims = ((number, read_attempt(store, number)) for number in reversed(numbers))
    attempt, claim = next((c for c in claims if c[1]), (numbers[-1], None))
    said, age = _read_progress(store, attempt)
    done = _result(store, claim)
    commit, commit_age = _newest_commit(store)
    state = _state(done, said.end, age)
    running = state == "running" and said.time is not None and said.remaining_seconds is not None
    return Status(
        job=claim.identity.get("job", "unknown") if claim else "unknown",
        run=store.uri,
        state=state,
        text=said.end.text if said.end else "",
        attempt=attempt,
        ranks=said.world_size,
        step=done.step if done else max(said.step, commit or 0),
        total_steps=said.total_steps,
        epoch=said.epoch,
        loss=said.loss,
        accuracy=said.validation_accuracy,
        metric=said.metric,
        value=Measure(value=said.metric_value, low=said.metric_low, high=said.metric_high),
        best=said.best_metric,
        images_per_second=said.images_per_second if running else None,
        expected_end=(said.time or 0) + (said.remaining_seconds or 0) if running else None,
        committed=commit,
        commit_age=commit_age,
        checkpoint_seconds=said.checkpoint_seconds if running else None,
        age=age,
        final=_describe_final(done) if done else "",
        cost=_read_cost(store, attempt),
    )


def _result(store: Store, claim: AttemptRecord | None) -> Done | None:
    """Return the result, unless the newest attempt is set to train for more epochs."""
    done = read_done(store)
    train = claim.manifest.get("train") if claim else None
    epochs = train.get("epochs") if isinstance(train, dict) else None
    return None if done and isinstance(epochs, int) and epochs > done.epochs else done


def _state(done: Done | None, end: End | None, age: float) -> str:
    if done:
        return "done"
    if end:
        return _STATES.get(end.code) or f"failed ({end.code})"
    return "running" if age < _SILENT_SECONDS else "silent"


def _read_progress(store: Store, attempt: int) -> tuple[ProgressRecord, float]:
    """Return the last progress record of an attempt, and its age in seconds."""
    name = progress_name(attempt)
    said = None
    with contextlib.suppress(ObjectMissing):
        said = get_json(store, name, ProgressRecord)
    if said is None:
        name = attempt_name(attempt)
    # By the store's clock, as the clock of the node that wrote it may be wrong.
    written = max((info.modified for info in store.list(name)), default=time.time())
    return said or ProgressRecord(), max(0.0, time.time() - written)


def _read_cost(store: Store, attempt: int) -> str:
    environment = None
    with contextlib.suppress(ObjectMissing):
        environment = get_json(store, environment_name(attempt), EnvironmentRecord)
    device = environment.root.get("device", "cpu") if environment else "cpu"
    return describe_cost(cost_of(read_history(store)), on_gpus=device != "cpu")


def _newest_commit(store: Store) -> tuple[int | None, float | None]:
    name = next((name for name in list_commits(store) if read_commit_record(store, name)), None)
    if name is None:
        return None, None
    written = max((info.modified for info in store.list(f"{COMMITS}{name}")), default=time.time())
    return name.step, max(0.0, time.time() - written)


def describe_status(status: Status) -> str:
    """Format the state as text, one line per fact."""
    steps = f"{status.step}"
    if status.total_steps:
        share = min(1.0, status.step / status.total_steps)
        steps = f"{status.step} of {status.total_steps}  {bar(share)} {share:.0%}"
    speed = ""
    if status.images_per_second is not None:
        speed = f"{status.images_per_second:.0f} images/s on {count(status.ranks or 1, 'rank')}"
    commit = ""
    if status.committed is not None:
        commit = f"step {status.committed}, {_ago(status.commit_age or 0)}"
    if status.checkpoint_seconds is not None:
        every = f"every {duration(status.checkpoint_seconds)}"
        commit = f"{commit}, {every}" if commit else f"none yet, {every}"
    rows = {
        "job": f"{status.job}, {status.run}",
        "state": f"{status.state}, last report {_ago(status.age)}",
        "why": _SILENCE if status.state == "silent" else status.text,
        "step": steps + (f", epoch {status.epoch}" if status.epoch else ""),
        "speed": speed,
        "loss": _number(status.loss, after=" in training"),
        METRIC_NAMES[status.metric]: _describe_metric(status),
        "final": status.final,
        "commit": commit,
        "attempt": str(status.attempt),
        "ends": _describe_end(status.expected_end),
        "cost": status.cost,
    }
    width = max(9, *(len(name) for name, text in rows.items() if text))
    return "\n".join(f"{name:<{width}} {text}" for name, text in rows.items() if text)


def _describe_final(done: Done) -> str:
    weights = done.weights
    accuracy = "" if weights.accuracy is None else f", accuracy {weights.accuracy:.2%}"
    return f"the model of {describe_source(weights.step, weights.blend)}{accuracy}"


def _describe_metric(status: Status) -> str:
    if status.value.value is None:
        return ""
    text = f"{metric_text(status.metric, status.value)} in validation"
    if status.best is None:
        return text
    best = Measure(value=status.best, low=status.best, high=status.best)
    return f"{text}, best {metric_text(status.metric, best).partition(' ')[0]}"


def _describe_end(at: float | None) -> str:
    if at is None:
        return ""
    left = duration(max(0.0, at - time.time()))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(at))}, in {left}"


def _number(value: float | None, after: str = "") -> str:
    return "" if value is None else f"{value:.4f}{after}"


def _ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"
