"""Small JSON objects of a job, none trusted: limited in size, validated, skipped if damaged."""

import json
import logging
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.store import Store

log = logging.getLogger(__name__)

MAX_BYTES = 8 << 20
"""The largest record that is believed, unless a reader says otherwise."""

R = TypeVar("R", bound=BaseModel)


class StoredRecord(BaseModel):
    """Base class of the record schemas; fields added by a later version are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


def get_json(store: Store, key: str, schema: type[R], limit: int = MAX_BYTES) -> R | None:
    """Read and validate an object; log a warning and return None if it is damaged.

    Args:
        store: The store that holds the object.
        key: The object's name.
        schema: The schema to validate the object against.
        limit: The largest size that is believed, in bytes.

    Raises:
        ObjectMissing: If there is no such object.
    """
    # One byte more than allowed, so that an object that is too large does not look truncated.
    data = store.get(key, 0, limit + 1)
    try:
        if len(data) > limit:
            raise ValueError(f"more than {limit} bytes")
        return schema.model_validate_json(data, strict=True)
    except ValueError as error:
        log.warning("%s%s: damaged (%s); ignoring it", store.uri, key, complaint(error))
        return None


def put_json(store: Store, key: str, data: Any) -> None:
    """Write data as an indented JSON object."""
    store.put(key, json.dumps(data, indent=1).encode())


def complaint(error: ValueError) -> str:
    """Return the first problem that an error reports: the field, if any, and the reason."""
    if not isinstance(error, ValidationError):
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:50] for part in detail["loc"][:8])
    return f"{where}: {detail['msg']}"[:200] if where else detail["msg"][:200]
