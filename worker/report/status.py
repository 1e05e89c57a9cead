"""Where a run stands, from what lies in its store: `worker status`."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from worker.checkpoint.attempt import newest_attempt, read_attempt
from worker.checkpoint.commit import COMMITS, CommitName
from worker.checkpoint.done import read_done
from worker.errors import ConfigurationError, ExitCode
from worker.store import ObjectMissing, Store
from worker.train.journal import PROGRESS_SECONDS, progress_name
from worker.train.progress import bar, duration

_SILENT_SECONDS = 3 * PROGRESS_SECONDS
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
    said, age = _read_progress(store, attempt)
    done = read_done(store)
    commit, commit_age = _newest_commit(store)
    end = said.get("end") or {}
    state = _state(done, end, age)
    running = state == "running" and "remaining_seconds" in said
    return Status(
        job=read_attempt(store, attempt)["identity"]["job"],
        run=store.uri,
        state=state,
        text=end.get("text", ""),
        attempt=attempt,
        ranks=said.get("world_size"),
        step=done["step"] if done else said.get("step", commit or 0),
        total_steps=said.get("total_steps"),
        epoch=said.get("epoch"),
        loss=said.get("loss"),
        accuracy=said.get("validation_accuracy"),
        best_accuracy=said.get("best_accuracy"),
        images_per_second=said.get("images_per_second"),
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
    """What an attempt said last, and how long ago by the store's clock that was."""
    name = progress_name(attempt)
    said: dict[str, Any] = {}
    try:
        said = json.loads(store.get(name))
    except ObjectMissing:
        name = f"attempts/{attempt:06d}.json"
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
    rows = {
        "job": f"{status.job}, {status.run}",
        "state": _describe_state(status),
        "step": steps + (f", epoch {status.epoch}" if status.epoch else ""),
        "speed": _number(status.images_per_second, ".0f", " images/s")
        + (f" on {status.ranks} ranks" if status.ranks else ""),
        "loss": _number(status.loss, ".4f"),
        "accuracy": _number(status.accuracy, ".4f")
        + _number(status.best_accuracy, ".4f", "", ", best "),
        "commit": ""
        if status.committed is None
        else f"step {status.committed}, {_ago(status.commit_age or 0)}",
        "attempt": f"{status.attempt}",
        "ends": _describe_end(status.expected_end),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items() if text)


def _describe_state(status: Status) -> str:
    if status.state == "silent":
        return (
            f"silent: no sign of life for {duration(status.age)}; it was killed, or is cut off "
            "from its storage"
        )
    text = f": {status.text}" if status.text else ""
    return f"{status.state}{text}, {_ago(status.age)}"


def _describe_end(at: float | None) -> str:
    if at is None:
        return ""
    left = duration(max(0.0, at - time.time()))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(at))}, in {left}"


def _number(value: float | None, form: str, unit: str = "", before: str = "") -> str:
    return "" if value is None else f"{before}{value:{form}}{unit}"


def _ago(seconds: float) -> str:
    return f"{duration(seconds)} ago"
