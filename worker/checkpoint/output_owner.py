"""The owner of an output: the identity of the job that claimed it first."""

import contextlib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from worker.checkpoint.claim import Identity, attempt_numbers, first_whole
from worker.checkpoint.commit import STATE_PART, list_commits, read_commit_part
from worker.checkpoint.publication_record import read_done
from worker.store import Store
from worker.store.json_records import StoredRecord

IDENTITY = "identity"


class _StateOwner(StoredRecord):
    identity: Annotated[dict[str, str], Field(min_length=1)]


def owner_of(store: Store, numbers: Sequence[int] | None = None) -> Identity | None:
    """Return the identity of the job that owns this output, or None if no job does.

    It is read from the first intact attempt record or, if there is none, from the result or a
    checkpoint.

    Args:
        store: The output.
        numbers: The numbers of its attempts, if they are already known.
    """
    owner = first_whole(store, attempt_numbers(store) if numbers is None else numbers)
    if owner:
        return owner.identity
    done = read_done(store)
    if done and done.identity:
        return done.identity
    # Oldest first, as the job that claimed the output first owns it.
    for name in reversed(list_commits(store)):
        data = read_commit_part(store, name, STATE_PART)
        with contextlib.suppress(ValueError):
            if data:
                return _StateOwner.model_validate_json(data).identity
    return None
