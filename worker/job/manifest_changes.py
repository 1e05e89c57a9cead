"""Differences between the manifests of a job's attempts, and their effects. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["silent", "noted", "ineffective", "refused"]

# These settings do not affect training, only when and where it is recorded.
_SILENT = ("checkpoint.", "record.")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that differs between attempts."""

    field: str
    """Dotted name of the setting."""
    before: Any
    """The value in the earlier attempt."""
    now: Any
    """The value in the current manifest."""
    kind: Kind
    """Effect of the change. `silent` is not logged, `noted` is logged, `ineffective` has no effect
    on a run that resumes, `refused` ends the attempt with exit code 78.
    """

    def __str__(self) -> str:
        return f"{self.field} {self.before} -> {self.now}"


def changes_between(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    kept_identity: Mapping[str, str],
    identity: Mapping[str, str],
    *,
    resumes: bool,
) -> list[Change]:
    """Return the changes to a manifest, refused ones first.

    Args:
        before: The flattened manifest of the previous attempt; empty if unknown.
        now: The flattened manifest of this attempt.
        kept_identity: The previous attempt's identity, by field; moving a data set does not
            change it.
        identity: The identity of this attempt, by field.
        resumes: Whether there is a checkpoint to resume from.
    """
    refused = [
        Change(field=field, before=kept_identity.get(field), now=value, kind="refused")
        for field, value in identity.items()
        if kept_identity.get(field, value) != value
    ]
    told = {change.field for change in refused}
    others = [
        Change(
            field=path,
            before=before.get(path),
            now=now.get(path),
            kind=kind_of(path, resumes=resumes),
        )
        # Fields of the identity are left out, as they are already refused under the same name.
        for path in sorted({*before, *now} if before else ())
        if before.get(path) != now.get(path) and path not in told
    ]
    return refused + sorted(others, key=lambda change: change.kind)


def kind_of(path: str, *, resumes: bool) -> Kind:
    """Return the effect of changing a field that does not identify the experiment."""
    if path == "model.weights" and resumes:
        return "ineffective"
    return "silent" if path.startswith(_SILENT) else "noted"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON data, keyed by dotted path."""
    if isinstance(value, dict):
        items = ((f".{key}", item) for key, item in value.items())
    # Lists of plain values, such as patterns, stay whole: they change as one setting.
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = ((f"[{number}]", item) for number, item in enumerate(value))
    else:
        return {path.lstrip("."): value}
    return {leaf: found for key, item in items for leaf, found in flat(item, path + key).items()}
