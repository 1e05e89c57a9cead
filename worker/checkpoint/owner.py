"""Whose an output is: the identity of the job that claimed it first."""

import contextlib
from typing import Annotated

from pydantic import Field

from worker.checkpoint.attempt import Identity, attempt_numbers, first_whole
from worker.checkpoint.commit import STATE_PART, list_commits, read_commit_part
from worker.checkpoint.publication import read_done
from worker.records import Record
from worker.store import Store

IDENTITY = "identity"


class _StateOwner(Record):
    identity: Annotated[dict[str, str], Field(min_length=1)]


def owner_of(store: Store) -> Identity | None:
    """Return the identity of the job whose output this is, None if it is nobody's.

    By the first attempt whose record is whole. Where none is, by what else carries the identity:
    the result, and the checkpoints.
    """
    owner = first_whole(store, attempt_numbers(store))
    if owner:
        return owner.identity
    done = read_done(store)
    if done and done.identity:
        return done.identity
    for name in reversed(list_commits(store)):
        data = read_commit_part(store, name, STATE_PART)
        with contextlib.suppress(ValueError):
            if data:
                return _StateOwner.model_validate_json(data).identity
    return None
