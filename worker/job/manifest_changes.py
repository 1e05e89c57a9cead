"""Differences between the manifests of a job's attempts, and what they mean. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["silent", "noted", "vain", "refused"]

# What changes nothing about the training, only when and where it is kept.
_SILENT = ("checkpoint.", "record.")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that differs."""

    field: str
    """Its dotted name."""
    before: Any
    """The value in the earlier attempt."""
    now: Any
    """The value in the manifest."""
    kind: Kind
    """`silent` needs no word, `noted` is logged, `vain` has no effect on a run that resumes,
    `refused` ends with 78.
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
    """Return the changes of a manifest, refused ones first.

    Args:
        before: The flat manifest of the attempt before; empty if nothing is known of it.
        now: The flat manifest.
        kept_identity: By field what must stay, as resolved: a data set that has moved is the same.
        identity: The same of this start.
        resumes: Whether there is a checkpoint to resume from.
    """
    refused = [
        Change(field=field, before=kept_identity.get(field), now=value, kind="refused")
        for field, value in identity.items()
        if kept_identity.get(field) != value
    ]
    told = {change.field for change in refused}
    others = [
        Change(
            field=path,
            before=before.get(path),
            now=now.get(path),
            kind=kind_of(path, resumes=resumes),
        )
        for path in sorted({*before, *now} if before else ())
        if before.get(path) != now.get(path) and path not in told
    ]
    return refused + sorted(others, key=lambda change: change.kind)


def kind_of(path: str, *, resumes: bool) -> Kind:
    """Return what a change of this manifest field means if it does not make another experiment."""
    if path == "model.weights" and resumes:
        return "vain"
    return "silent" if path.startswith(_SILENT) else "noted"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested JSON data by dotted path."""
    if isinstance(value, dict):
        items = ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = ((f"[{number}]", item) for number, item in enumerate(value))
    else:
        return {path.lstrip("."): value}
    return {leaf: found for key, item in items for leaf, found in flat(item, path + key).items()}
