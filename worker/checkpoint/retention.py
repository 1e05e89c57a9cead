"""Selection of the checkpoints to delete.

Pure functions: a mistake here costs somebody their training run.
"""

from collections.abc import Collection, Mapping, Sequence

from worker.checkpoint.commit import CommitName

DEAD_AFTER_SECONDS = 120.0
"""Age at which uncommitted parts of older attempts are deleted. Each try at sending a request ends
within the store deadline, 60 seconds by default, and is preceded by a check for newer attempts. A
commit that arrived even later would lack its parts and be skipped.
"""


def expendable(
    commits: Sequence[CommitName],
    trusted: Collection[CommitName],
    keep: int,
    kept_steps: Collection[int] = (),
) -> list[CommitName]:
    """Return the commits that may be deleted, oldest first.

    Args:
        commits: All commits, in order.
        trusted: Commits that this attempt wrote or has verified. Others may be damaged, so they
            never count.
        keep: The number of trusted commits to keep, at least 1; nothing is expendable until there
            are that many.
        kept_steps: Steps that are never expendable, such as that of the best weights.

    Returns:
        The commits older than the newest `keep` trusted ones, except those of `kept_steps`.
    """
    # Everything from the oldest of these on is kept, trusted or not, so a start that rejects newer
    # commits as damaged still finds `keep` sound ones.
    newest = sorted(set(trusted), reverse=True)[:keep]
    if len(newest) < keep:
        return []
    return sorted(name for name in commits if name < newest[-1] and name.step not in kept_steps)


def abandoned(
    written: Mapping[CommitName, float],
    commits: Collection[CommitName],
    attempt: int,
    now: float,
) -> list[CommitName]:
    """Return the checkpoints that older attempts have left without a commit.

    Args:
        written: The time at which the last part of each checkpoint was written, in seconds.
        commits: The checkpoints that have a commit.
        attempt: The number of this attempt.
        now: The current time, in seconds on the same clock.

    Returns:
        Their names, oldest first.
    """
    return sorted(
        name
        for name, at in written.items()
        if name not in commits and name.attempt < attempt and now - at > DEAD_AFTER_SECONDS
    )
