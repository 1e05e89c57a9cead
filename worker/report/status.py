"""Where a run stands, from what lies in its store: `worker status`."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from worker.checkpoint.attempt import ATTEMPTS, newest_attempt
from worker.checkpoint.commit import COMMITS, CommitName
from worker.checkpoint.done import DONE_NAME
from worker.errors import ConfigurationError, ExitCode
from worker.logs import count
from worker.report.reading import read_json
from worker.store import Store
from worker.train.journal import PROGRESS_SECONDS, progress_name
from worker.train.progress import bar, duration

_SILENT_SECONDS = 3 * PROGRESS_SECONDS
_SILENCE = "no sign of life: it was killed, or is cut off from its storage"
_STATES = {ExitCode.STOPPED: "stopped", ExitCode.SUPERSEDED: "superseded"}


@dataclass(frozen=True)
class Status:
    """`state` is `done`, `running`, `stopped`, `superseded`, `failed (CODE)` or `silent`.

    Ages are in seconds, times in Unix seconds.
    `text` says why it ended; `age` is how old all this is, `commit_age` how old the last
    checkpoint. What is not known (yet) is None.
    """

    job: str
    run: str
    state: str
    text: str
    attempt: int
    ranks: int | None
    step: int
    total_steps: int | None
    epoch: int | None
    loss: float | None
    accuracy: float | None
    best_accuracy: float | None
    images_per_second: float | None
    expected_end: float | None
    committed: int | None
    commit_age: float | None
    age: float

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return asdict(self)


def read_status(store: Store) -> Status:
    """The standing of a run; a few requests. Raises `ConfigurationError` where there is none."""
    attempt = newest_attempt(store)
    if not attempt:
        raise ConfigurationError(
            f"{store.uri}: holds no run; give the output of a job that was started"
        )
    claim = read_json(store, f"{ATTEMPTS}{attempt:06d}.json") or {}
    said, age = _read_progress(store, attempt)
    done = read_json(store, DONE_NAME)
    commit, commit_age = _newest_commit(store)
    end = said.get("end") or {}
    state = _state(done, end, age)
    running = state == "running" and "remaining_seconds" in said
    return Status(
        job=claim.get("identity", {}).get("job", "unknown"),
        run=store.uri,
        state=state,
        text=end.get("text", ""),
        attempt=attempt,
        ranks=said.get("world_size"),
        step=done["step"] if done else max(said.get("step", 0), commit or 0),
        total_steps=said.get("total_steps"),
        epoch=said.get("epoch"),
        loss=said.get("loss"),
        accuracy=said.get("validation_accuracy"),
        best_accuracy=said.get("best_accuracy"),
        images_per_second=said.get("images_per_second") if running else None,
        expected_end=said["time"] + said["remaining_seconds"] if running else None,
        committed=commit,
        commit_age=commit_age,
        age=age,
    )


def _state(done: dict[str, Any] | None, end: dict[str, Any], age: float) -> str:
    if done:
        return "done"
    if end:
        return _STATES.get(end["code"], f"failed ({end['code']})")
    return "running" if age < _SILENT_SECONDS else "silent"


def _read_progress(store: Store, attempt: int) -> tuple[dict[str, Any], float]:
    """What an attempt said last, and how long ago, from the store's time of it to ours."""
    name = progress_name(attempt)
    said: dict[str, Any] = read_json(store, name) or {}
    if not said:
        name = f"{ATTEMPTS}{attempt:06d}.json"
    written = max((info.modified for info in store.list(name)), default=time.time())
    return said, max(0.0, time.time() - written)


def _newest_commit(store: Store) -> tuple[int | None, float | None]:
    found = [
        (name, info.modified)
        for info in store.list(COMMITS)
        if (name := CommitName.parse(info.key.removeprefix(COMMITS).removesuffix(".json")))
    ]
    if not found:
        return None, None
    name, written = max(found)
    return name.step, max(0.0, time.time() - written)


def describe_status(status: Status) -> str:
    """The standing as text, a row per fact."""
    steps = f"{status.step}"
    if status.total_steps:
        share = status.step / status.total_steps
        steps = f"{status.step} of {status.total_steps}  {bar(share)} {share:.0%}"
    speed = ""
    if status.images_per_second is not None:
        speed = f"{status.images_per_second:.0f} images/s on {count(status.ranks or 1, 'rank')}"
    commit = ""
    if status.committed is not None:
        commit = f"step {status.committed}, {_ago(status.commit_age or 0)}"
    rows = {
        "job": f"{status.job}, {status.run}",
        "state": f"{status.state}, {_ago(status.age)}",
        "why": _SILENCE if status.state == "silent" else status.text,
        "step": steps + (f", epoch {status.epoch}" if status.epoch else ""),
        "speed": speed,
        "loss": _number(status.loss),
        "accuracy": _number(status.accuracy) + _number(status.best_accuracy, ", best "),
        "commit": commit,
        "attempt": str(status.attempt),
        "ends": _describe_end(status.expected_end),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items() if text)


def _describe_end(at: float | None) -> str:
    if at is None:
        return ""
    left = duration(max(0.0, at - time.time()))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(at))}, in {left}"


def _number(value: float | None, before: str = "") -> str:
    return "" if value is None else f"{before}{value:.4f}"


def _ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"
