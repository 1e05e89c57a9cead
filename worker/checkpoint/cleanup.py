"""Removal of checkpoints that are no longer needed and of leftovers from dead attempts."""

import contextlib
import logging
from collections.abc import Collection

from worker.checkpoint.claim import ensure_newest
from worker.checkpoint.commit import (
    PART_NAMES,
    CommitName,
    delete_commit,
    delete_parts,
    list_commits,
)
from worker.checkpoint.retention import abandoned, expendable
from worker.errors import WorkerError
from worker.layout import CHECKPOINTS, COMMITS, part_name
from worker.logs import count
from worker.store import Store

log = logging.getLogger(__name__)


def clean(
    store: Store,
    own: CommitName,
    *,
    trusted: Collection[CommitName],
    keep: int,
    kept_steps: Collection[int],
) -> None:
    """Delete old checkpoints, and parts that were never committed, right after a commit.

    Args:
        store: The output of the job.
        own: The commit that was just made.
        trusted: Commits that this attempt wrote or has verified.
        keep: The number of trusted commits to keep, at least 1.
        kept_steps: Steps that are kept as well, such as that of the best weights.
    """
    ensure_newest(store, own.attempt)  # this attempt cannot know which objects a newer one needs
    for name in expendable(list_commits(store), trusted, keep, kept_steps):
        delete_commit(store, name)
    written: dict[CommitName, float] = {}
    for info in store.list(CHECKPOINTS):
        found = CommitName.parse(info.key.removeprefix(CHECKPOINTS).split("/")[0])
        if found:
            written[found] = max(written.get(found, 0.0), info.modified)
    # Use the store's own clock, as this machine's may be wrong. If the commit is not listed, time 0
    # makes every checkpoint too recent to be abandoned.
    now = max((info.modified for info in store.list(f"{COMMITS}{own}")), default=0.0)
    # Commits are listed after the parts, so the parts of a commit made in between are kept.
    dead = abandoned(written, list_commits(store), own.attempt, now)
    for name in dead:
        for part in PART_NAMES:
            # Some stores do not support listing uploads.
            with contextlib.suppress(WorkerError):
                store.abort_uploads(part_name(name, part))
        delete_parts(store, name)
    if dead:
        log.info("removed %s of dead attempts", count(len(dead), "unfinished checkpoint"))
