"""Attempts: one numbered object per start of a job; the number is the fencing token."""

import datetime
import json
import os
import socket
import uuid
from collections.abc import Mapping
from typing import Any

from worker.errors import InfrastructureError, Superseded
from worker.store import Store

ATTEMPTS = "attempts/"
_TRIES = 100


def newest_attempt(store: Store) -> int:
    """The number of the newest attempt, 0 if there was none."""
    names = [info.key.removeprefix(ATTEMPTS).removesuffix(".json") for info in store.list(ATTEMPTS)]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def read_attempt(store: Store, number: int) -> dict[str, Any]:
    """What attempt `number` said of itself when it claimed its place."""
    record: dict[str, Any] = json.loads(store.get(_name(number)))
    return record


def claim_attempt(store: Store, identity: Mapping[str, str]) -> int:
    """Register a new attempt and return its number, greater than every other.

    `identity` is what must be the same for all attempts of one job.
    """
    record = {
        "identity": dict(identity),
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    data = json.dumps(record).encode()
    number = newest_attempt(store)
    for _ in range(_TRIES):
        number += 1
        if store.put_if_absent(_name(number), data):
            return number
    where = f"{store.uri}{ATTEMPTS}"
    raise InfrastructureError(f"{where}: cannot claim an attempt, others keep winning")


def ensure_newest(store: Store, attempt: int) -> None:
    """Raise `Superseded` where a newer attempt exists; called before anything is committed."""
    newest = newest_attempt(store)
    if newest > attempt:
        raise Superseded(f"attempt {newest} of this job has started, attempt {attempt} ends")


def _name(number: int) -> str:
    return f"{ATTEMPTS}{number:06d}.json"
