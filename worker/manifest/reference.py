"""Reference for the manifest in Markdown, generated from the code."""

import json
from collections.abc import Iterator
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from worker.manifest.job import Manifest
from worker.manifest.keys import section_in
from worker.manifest.training import Group

_HEAD = "| key | default | meaning |\n|---|---|---|"


def describe_manifest() -> str:
    """Return a table of all keys except those of groups, then a table of the groups' keys."""
    keys = [row for row in _rows(Manifest, "") if not row[0].startswith("optimizer.groups.")]
    return f"{_table(keys)}\n\n## Groups\n\n{_table(list(_rows(Group, '')))}\n"


def describe_keys(section: type[BaseModel]) -> str:
    """Return a table of all keys of a section and of those below it."""
    return f"{_table(list(_rows(section, '')))}\n"


def _rows(section: type[BaseModel], path: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        key = f"{path}{field.alias or name}"
        inner = section_in(field.annotation)
        # The rows of a section's keys show its defaults.
        shows_keys = inner and not _is_optional(field) and not field.is_required()
        default = "" if shows_keys else _default(field)
        yield key, default, " ".join((field.description or "").split())
        if inner:
            # The keys of a mapping are the user's.
            named = "PATH." if get_origin(field.annotation) is dict else ""
            yield from _rows(inner, f"{key}.{named}")


def _is_optional(field: FieldInfo) -> bool:
    return not field.is_required() and field.default is None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{json.dumps(value)}`"


def _table(rows: list[tuple[str, str, str]]) -> str:
    return "\n".join([_HEAD, *(f"| `{key}` | {default} | {text} |" for key, default, text in rows)])
