"""The choice of checkpoints to delete. Pure; a mistake here costs somebody's training."""

from collections.abc import Collection, Mapping, Sequence

from worker.checkpoint.commit import CommitName

DEAD_AFTER_SECONDS = 120.0
"""A try of a request ends with the store deadline, 60 seconds by default, and is preceded by a look
for newer attempts. A commit that came even later would lack its parts, and be passed over."""


def expendable(
    commits: Sequence[CommitName],
    trusted: Collection[CommitName],
    keep: int,
    best_step: int | None = None,
) -> list[CommitName]:
    """Return the commits older than the newest `keep` trusted ones, oldest first, less the best.

    Trusted are those that this attempt wrote or has verified; others may be damaged and so never
    count, and nothing goes before `keep` (at least 1) trusted ones exist.
    """
    newest = sorted(set(trusted), reverse=True)[:keep]
    if len(newest) < keep:
        return []
    return sorted(name for name in commits if name < newest[-1] and name.step != best_step)


def abandoned(
    written: Mapping[CommitName, float],
    commits: Collection[CommitName],
    attempt: int,
    now: float,
) -> list[CommitName]:
    """Checkpoints without a commit that older attempts than `attempt` have left, oldest first.

    `written` is when the last part of each was, `now` the time by the same clock, in seconds.
    """
    return sorted(
        name
        for name, at in written.items()
        if name not in commits and name.attempt < attempt and now - at > DEAD_AFTER_SECONDS
    )
