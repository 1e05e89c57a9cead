"""Reading a manifest: YAML 1.2 or JSON to checked settings, every mistake as one line."""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from worker.errors import ConfigurationError, first_line
from worker.manifest.job import Manifest
from worker.store import ObjectMissing, read_uri

_ALTERNATIVE = re.compile(r"[\w-]+\[|[A-Z]\w*$")


def load_manifest(uri: str) -> Manifest:
    """Read and check the manifest at `s3://`, `file://` or a path.

    Raises `ConfigurationError` with one line per mistake, each naming its field.
    """
    try:
        text = read_uri(uri).decode()
    except ObjectMissing as error:
        raise ConfigurationError(f"manifest {error}; check the address") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"manifest {uri}: not UTF-8 text") from None
    return parse_manifest(text, uri)


def parse_manifest(text: str, uri: str) -> Manifest:
    """Check a manifest's text; `uri` is for messages only."""
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = str(error.problem or error).splitlines()[0]
        raise ConfigurationError(f"manifest {uri}: line {line}: {problem}") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"manifest {uri}: {first_line(error)}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"manifest {uri}: not a mapping; it starts with `version: 1`")
    try:
        # By way of JSON, so that strict mode takes lists for tuples as a manifest writes them.
        text = json.dumps(data, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"manifest {uri}: not plain data: {error}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        lines = dict.fromkeys(_complaint(detail) for detail in _relevant(error.errors()))
        raise ConfigurationError(f"manifest {uri}: " + "; ".join(lines)) from None


def _relevant(details: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """The causes: where a field takes a word or a section, only what is wrong with what was given.

    And where items of a list are wrong, not that the others are too few.
    """
    places = [detail["loc"] for detail in details]
    for detail in details:
        here = detail["loc"]
        if detail["type"] == "too_short" and any(p[: len(here)] == here != p for p in places):
            continue
        # pydantic names the alternative in the path: `literal['always']`, `Freeze`, `dict[…]`.
        path = tuple(
            p for p in detail["loc"] if isinstance(p, int) or _ALTERNATIVE.match(p) is None
        )
        other = detail["type"] in ("model_type", "dict_type") or (
            detail["type"] == "literal_error" and isinstance(detail["input"], dict)
        )
        if path == detail["loc"] or not other:
            word = path != detail["loc"] and detail["type"] == "literal_error"
            message = f"{detail['msg']} or a mapping" if word else detail["msg"]
            yield {**detail, "loc": path, "msg": message}


def _complaint(detail: ErrorDetails) -> str:
    """One mistake as `path: what is wrong; what to do`."""
    location = list(detail["loc"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    path = path.lstrip(".")
    if detail["type"] == "missing":
        return f"{path}: missing; add it"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {remedy}"
    if detail["type"] == "string_pattern_mismatch":
        return f"{path}: must be 1 to 63 lower-case letters, digits and inner dashes"
    if detail["type"] == "model_type":
        return f"{path}: must be a mapping of {', '.join(_known_keys(location))}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    shown = detail["input"] if isinstance(detail["input"], (str, int, float)) else None
    got = f", not {shown!r}" if shown is not None else ""
    return f"{path}: {message}{got}"


def _known_keys(location: list[Any]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] = Manifest
    for part in location:
        if part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's type holds: itself, or within `X | None` and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
