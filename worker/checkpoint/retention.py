"""Which checkpoints may go. Pure; a mistake here costs somebody's training."""

from collections.abc import Sequence

from worker.checkpoint.commit import CommitName


def expendable(
    commits: Sequence[CommitName], trusted: Sequence[CommitName], keep: int
) -> list[CommitName]:
    """The commits older than the newest `keep` trusted ones, oldest first.

    Trusted are those that this attempt wrote or has verified; others may be damaged and so never
    count, and nothing goes before `keep` (at least 1) trusted ones exist.
    """
    newest = sorted(set(trusted), reverse=True)[:keep]
    if len(newest) < keep:
        return []
    return sorted(name for name in commits if name < newest[-1])
