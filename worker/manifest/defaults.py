"""The defaults of the manifest's fields, by dotted path."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from worker.manifest.job import Manifest
from worker.manifest.keys import section_in

_INDEX = re.compile(r"\[\d+\]")


def is_default(path: str, value: Any) -> bool:
    """Return whether a field such as `optimizer.groups[1].lr` has its default value.

    `value` is JSON data. The result is false for a field without a default.
    """
    known = _defaults()
    plain = _INDEX.sub("", path)
    return plain in known and known[plain] == value


@functools.cache
def _defaults() -> dict[str, Any]:
    return dict(_walk(Manifest, ""))


def _walk(section: type[BaseModel], path: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        default = field.get_default(call_default_factory=True)
        if inner and (default is not None or field.is_required()):
            yield from _walk(inner, f"{path}{name}.")
        elif default is not PydanticUndefined:
            # JSON data has no tuples.
            yield f"{path}{name}", list(default) if isinstance(default, tuple) else default
