"""Loading and validation of manifests in YAML 1.2 or JSON, with one line per mistake."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from worker.errors import ConfigurationError, first_line
from worker.logs import count
from worker.manifest.job import Manifest
from worker.manifest.keys import known_keys, remedy_for
from worker.manifest.yaml import MAX_BYTES, parse_yaml
from worker.store import ObjectMissing, read_uri
from worker.text import printable, read_text

S = TypeVar("S", bound=BaseModel)

_MAX_SHOWN = 60
_MAX_COMPLAINTS = 20


def load_manifest(uri: str) -> Manifest:
    """Read and validate the manifest at an `s3://` or `file://` address or a path.

    Raises `ConfigurationError` with one line per mistake, each naming its field.
    """
    return parse_manifest(read_manifest(uri), uri)


def read_manifest(uri: str) -> str:
    """Return the text of a manifest. Raises `ConfigurationError` if it cannot be read."""
    try:
        data = read_uri(uri, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigurationError(
                f"manifest {uri}: larger than {MAX_BYTES} bytes, so not a manifest; check "
                f"the address"
            )
        return read_text(data)
    except ObjectMissing as error:
        raise ConfigurationError(f"manifest {error}; check the address") from None
    except ValueError as error:
        raise ConfigurationError(f"manifest {uri}: {error}") from None


def parse_manifest(text: str, uri: str) -> Manifest:
    """Parse and validate a manifest's text; `uri` is for messages only."""
    data = parse_mapping(text, uri)
    if {"sweep", "vary"} <= data.keys():
        raise ConfigurationError(f"manifest {uri}: is that of a sweep; use `worker sweep`")
    return check_manifest(data, f"manifest {uri}")


def parse_mapping(text: str, uri: str) -> dict[Any, Any]:
    """Parse a manifest's text into plain data; `uri` is for messages only."""
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise ConfigurationError(f"manifest {uri}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"manifest {uri}: not a mapping; start it with `version: 1`")
    return data


def check_manifest(data: dict[Any, Any], where: str) -> Manifest:
    """Validate plain data as a manifest; `where` is for messages only."""
    return check_section(data, where, Manifest)


def check_section(data: dict[Any, Any], where: str, schema: type[S]) -> S:
    """Validate plain data against a schema.

    Args:
        data: The data.
        where: Where it comes from, for messages.
        schema: The schema of the outermost section.

    Raises:
        ConfigurationError: With one line per mistake, each naming its field.
    """
    try:
        # Via JSON, so that strict mode accepts a manifest's lists as tuples.
        text = json.dumps(data, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{where}: not plain data: {first_line(error)}") from None
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        # Bounded, as `_relevant` compares every error with every other.
        details = error.errors(include_url=False)[: 10 * _MAX_COMPLAINTS]
        plain = json.loads(text)
        relevant = _relevant(details, plain)
        lines = list(dict.fromkeys(_complaint(detail, schema) for detail in relevant))
        if len(lines) == 1:
            raise ConfigurationError(f"{where}: {lines[0]}") from None
        more = ["and more"] if len(lines) > _MAX_COMPLAINTS else []
        head = f"{where}: {count(len(lines), 'mistake')}:"
        raise ConfigurationError("\n  ".join([head, *lines[:_MAX_COMPLAINTS], *more])) from None


def _relevant(details: list[ErrorDetails], data: Any) -> Iterator[ErrorDetails]:
    """Yield the causes: if a field has alternative types, only the errors of the type used.

    If items of a list are invalid, an error saying that the list is too short is dropped.
    """
    places = [detail["loc"] for detail in details]
    floats = {_path_in(data, detail) for detail in details if detail["type"] == "float_type"}
    for detail in details:
        here = detail["loc"]
        if detail["type"] == "too_short" and any(p[: len(here)] == here != p for p in places):
            continue
        path = _path_in(data, detail)
        # Errors that only say that the data has another of the alternative types. If the data is a
        # mapping, the error about the literal is one of them.
        other = detail["type"] in ("model_type", "dict_type") or (
            detail["type"] in ("literal_error", "int_type", "float_type")
            and isinstance(detail["input"], dict)
        )
        # A field that takes any number complains of each kind of number.
        other = other or (detail["type"] == "int_type" and path in floats)
        if path == detail["loc"] or not other:
            # A wrong word is reported once, for the literal; its message also mentions the mapping.
            word = path != detail["loc"] and detail["type"] == "literal_error"
            message = f"{detail['msg']} or a mapping" if word else detail["msg"]
            yield {**detail, "loc": path, "msg": message}


def _path_in(data: Any, detail: ErrorDetails) -> tuple[int | str, ...]:
    """Return the path of a mistake in the data.

    pydantic's path also names the alternatives of a type: `literal['always']`, `Freeze`, `dict[…]`.
    """
    path: list[int | str] = []
    # The last part of such a path names a key that need not be in the data.
    added = detail["type"] in ("missing", "extra_forbidden")
    for index, part in enumerate(detail["loc"]):
        inside = isinstance(data, dict) and part in data
        if isinstance(data, list) and isinstance(part, int):
            inside = part < len(data)
        if inside:
            data = data[part]
        elif not (added and index == len(detail["loc"]) - 1):
            continue
        path.append(part)
    return tuple(path)


def _complaint(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    """Return a mistake as `path: what is wrong; what to do`."""
    location = list(detail["loc"])
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in location
    )
    path = path.lstrip(".")
    if detail["type"] == "missing":
        return f"{path}: missing; add it"
    if detail["type"] == "extra_forbidden":
        key = str(location[-1])[:_MAX_SHOWN]
        return f"{path}: unknown key; {remedy_for(key, location[:-1], schema)}"
    if detail["type"] == "string_pattern_mismatch":
        return (
            f"{path}: must be 1 to 63 lowercase letters, digits and dashes, with no dash at "
            "either end"
        )
    if detail["type"] in ("too_long", "too_short"):
        kind, many = detail["type"].partition("_")[2], detail.get("ctx", {})
        which, bound = ("most", "max_length") if kind == "long" else ("least", "min_length")
        items = count(many[bound], "item")
        return f"{path}: must have at {which} {items}, not {many['actual_length']}"
    if detail["type"] == "model_type":
        return f"{path}: must be a mapping of {', '.join(known_keys(location, schema))}"
    if detail["type"] == "string_type" and isinstance(detail["input"], (bool, int, float)):
        # YAML reads a bare 2024, true or 007 as what it looks like.
        return f"{path}: must be text; put it in quotes"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    given = detail["input"]
    got = f", not {_quoted(given)}" if isinstance(given, (str, int, float)) else ""
    return f"{path}: {message}{got}" if path else f"{message}{got}"


def _quoted(value: str | float) -> str:
    shown = _shown(value)
    return f"'{shown}'" if isinstance(value, str) else str(shown)


def _shown(value: str | float) -> str | float:
    """Return a value as shown in messages: printable, and cut off if it is long."""
    if isinstance(value, str):
        return printable(value[:_MAX_SHOWN]) + ("…" if len(value) > _MAX_SHOWN else "")
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:
        return "a number of more than 60 digits"
    return value
