"""Conditions without which a pack is refused, each with its remedy."""

from collections.abc import Sequence

from worker.data.error_budget import allowed
from worker.errors import ConfigurationError, DataError
from worker.ingest.duplicates import Copies
from worker.ingest.planned import PlannedSplit, PlanOptions
from worker.ingest.rows import Row
from worker.ingest.splits import TEST, TRAIN, VAL, SplitOptions, group_of
from worker.logs import count

_MAX_LISTED = 20


def require_budget(rows: Sequence[Row], bad: list[int], share: float | None) -> None:
    if len(bad) <= allowed(share or 0, len(rows)):
        return
    reasons = {rows[i].bad for i in bad}
    if len(bad) == len(rows) > 1 and len(reasons) == 1:
        reason = f"{reasons.pop()}, such as {rows[0].name}"
        if "no such file" in reason:
            reason += "; pass --root with the folder that the paths start from"
        raise DataError(f"none of the {len(rows):,} images can be used: {reason}")
    them = "it" if len(bad) == 1 else "them"
    remedy = f"repair or remove {them}, or pass --bad skip"
    if share is not None:
        remedy = f"more than --error-budget {share:g} allows; repair or remove {them}"
    lines = [f"{rows[i].name}: {rows[i].bad}" for i in bad]
    raise DataError("\n  ".join([f"{count(len(bad), 'image')} cannot be used; {remedy}:", *lines]))


def require_splits(names: Sequence[str], options: SplitOptions) -> None:
    wanted = {TRAIN: names != [""], VAL: options.val > 0, TEST: options.test > 0}
    for name, is_wanted in wanted.items():
        if is_wanted and name not in names:
            raise ConfigurationError(
                f"no image is in {name}; there are too few images or groups for these shares "
                "(--val, --test, --group-by), or the source has no such split"
            )


def require_apart(
    rows: Sequence[Row], copies: list[Copies], splits: dict[int, str], options: PlanOptions
) -> None:
    across = [group for group in copies if group.across]
    if not across or options.allow_duplicates:
        return
    lines = [
        " = ".join(f"{splits[i]}: {rows[i].key}" for i in group.rows[:4])
        for group in across[:_MAX_LISTED]
    ]
    more = [f"and {len(across) - _MAX_LISTED} more"] if len(across) > _MAX_LISTED else []
    head = (
        f"{count(len(across), 'image')} in more than one split: a model cannot be judged on "
        "what it was trained on; remove the copies, or pass --allow-duplicates:"
    )
    raise DataError("\n  ".join([head, *lines, *more]))


def require_whole_groups(
    rows: Sequence[Row], splits: dict[int, str], options: SplitOptions
) -> None:
    """Raise `DataError` if a group is in more than one split, as the source may have put it."""
    if options.group_by is None:
        return
    found: dict[str, str] = {}
    for i, split in splits.items():
        group = group_of(rows[i].key, rows[i].group, options)
        if found.setdefault(group, split) != split:
            raise DataError(
                f"the group {group!r} is in {found[group]} and in {split}; a model cannot be "
                "judged on what it was trained on; move the group, or divide the images anew "
                "(--resplit)"
            )


def require_every_class(planned: Sequence[PlannedSplit], classes: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` if a class has no training images: it could not be learned."""
    for name, number in zip(classes, planned[0].counts, strict=True):
        if not number:
            where = planned[0].name or "the data set"
            raise ConfigurationError(
                f"the class {name!r} has no images in {where}; add some, or leave the class out "
                "(--keep-classes, --classes)"
            )
