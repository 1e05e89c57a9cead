"""Which checkpoints are kept."""

from hypothesis import given
from hypothesis import strategies as st

from worker.checkpoint.commit import (
    CommitName,
)
from worker.checkpoint.retention import abandoned, expendable

NAMES = st.lists(st.builds(CommitName, st.integers(0, 50), st.integers(1, 5)), unique=True)


@given(NAMES, st.data(), st.integers(1, 4), st.none() | st.integers(0, 50))
def test_retention_never_takes_what_may_be_needed(
    commits: list[CommitName], data: st.DataObject, keep: int, best: int | None
) -> None:
    trusted = [name for name in commits if data.draw(st.booleans())]
    gone = expendable(commits, trusted, keep, {best} if best is not None else ())
    left = [name for name in trusted if name not in gone]
    assert len(left) >= min(keep, len(trusted))
    assert best not in {name.step for name in gone}
    if gone:
        assert len([name for name in left if name.step != best]) <= keep
        assert max(gone) < sorted(left, reverse=True)[keep - 1]
    if trusted:
        assert max(trusted) in left


@given(
    st.dictionaries(st.builds(CommitName, st.integers(0, 9), st.integers(1, 5)), st.floats(0, 300)),
    st.data(),
    st.integers(1, 5),
)
def test_only_what_older_attempts_have_left_is_abandoned(
    written: dict[CommitName, float], data: st.DataObject, attempt: int
) -> None:
    commits = [name for name in written if data.draw(st.booleans())]
    gone = abandoned(written, commits, attempt, 300.0)
    for name, at in written.items():
        old = name not in commits and name.attempt < attempt and 300 - at > 120
        assert (name in gone) == old
