"""Attempts that are paused while they finish, and jobs that share an output by mistake.

With real processes; `test_search.py` has every interleaving of the same code.
"""

import functools
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Job, Run, Start, Write
from tests.support.sabotage import pause_in_export
from tests.support.stores import contents
from worker.store import Store, open_store

PAUSE_ROUNDS, OUTPUT_ROUNDS = 30, 30


def require_whole(store: Store) -> dict[str, Any]:
    """The result, which names all that lies in `final/`."""
    done: dict[str, Any] = json.loads(store.get("done.json"))
    for part in done["parts"]:
        assert hashlib.sha256(store.get(part["name"])).hexdigest() == part["sha256"], part
    card = json.loads(store.get("final/model.json"))
    assert card["metrics"]["step"] == done["step"]
    return done


def published(store: Store) -> dict[str, bytes]:
    """What users look at."""
    return {
        key: data for key, data in contents(store).items() if key.startswith(("done", "final/"))
    }


def wait_until_stopped(pid: int) -> None:
    """Wait until a process has been stopped by a signal."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_pause(at: int, start: Start, run: Run, write: Write, job: Job, folder: Path) -> bool:
    """Pause an attempt before a request of its export; false if it has no so many."""
    job = job | {"output": f"{folder}/paused-{at}/"}
    older = start("train", write(job), sabotage=functools.partial(pause_in_export, at))
    try:
        older.wait_for("epoch 1/1")
        wait_until_stopped(older.pid)
    except (AssertionError, FileNotFoundError):
        assert older.wait().code == 0
        return False
    store = open_store(job["output"])
    newer = job | {"train": {**job["train"], "epochs": 2}}
    ended = run("train", write(newer))
    assert ended.code == 0, ended.err
    before = published(store)
    done = require_whole(store)
    assert done["step"] in (5, 10)
    os.kill(older.pid, signal.SIGCONT)
    woken = older.wait()
    assert woken.code in (0, 76), woken.err
    assert published(store) == before
    require_whole(store)
    return True


@pytest.mark.parametrize("at", [1, 7, 12])
def test_an_attempt_paused_in_its_export_changes_nothing(
    at: int, start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    job["train"]["epochs"] = 1
    assert check_pause(at, start, run, write, job, tmp_path)


@pytest.mark.e2e
def test_an_attempt_paused_at_each_request_of_its_export(
    start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    job["train"]["epochs"] = 1
    rounds = [check_pause(at, start, run, write, job, tmp_path) for at in range(PAUSE_ROUNDS)]
    assert sum(rounds) > PAUSE_ROUNDS // 2


def check_two_jobs(number: int, start: Start, run: Run, write: Write, job: Job, at: Path) -> None:
    """Two jobs that were given one output start together: one is refused, and leaves no trace."""
    output = f"{at}/shared-{number}/"
    jobs = [
        job | {"job": name, "output": output, "train": {**job["train"], "seed": seed, "epochs": 1}}
        for name, seed in (("one", 1), ("two", 2))
    ]
    first = start("train", write(jobs[0]))
    time.sleep((number % 10) / 25)
    ends = {"two": start("train", write(jobs[1])).wait(), "one": first.wait()}
    codes = {name: ended.code for name, ended in ends.items()}
    assert sorted(codes.values()) == [0, 78], [ended.err for ended in ends.values()]
    (owner,) = (name for name, code in codes.items() if code == 0)
    (other,) = codes.keys() - {owner}
    assert "belongs to another job (job: " in ends[other].err
    store = open_store(output)
    left = contents(store)
    assert [key for key in left if key.startswith("attempts/")] == ["attempts/000001.json"]
    assert json.loads(left["attempts/000001.json"])["identity"]["job"] == owner
    require_whole(store)
    if number % 10:
        return
    for name, code in ((owner, 0), (other, 78)):
        again = next(each for each in jobs if each["job"] == name)
        assert run("train", write(again)).code == code
    assert contents(store) == left


def test_two_jobs_on_one_output(
    start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    check_two_jobs(0, start, run, write, job, tmp_path)


@pytest.mark.e2e
def test_two_jobs_on_one_output_in_thirty_rounds(
    start: Start, run: Run, write: Write, job: Job, tmp_path: Path
) -> None:
    for number in range(OUTPUT_ROUNDS):
        check_two_jobs(number, start, run, write, job, tmp_path)
