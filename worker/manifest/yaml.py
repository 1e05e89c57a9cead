"""YAML 1.2 or JSON text as plain data, in bounded time and memory."""

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    NodeEvent,
    ScalarEvent,
)

from worker.errors import first_line

MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_DUPLICATE = re.compile(r'found duplicate key "(.*?)" with value .*')


def parse_yaml(text: str) -> Any:
    """Return the data in a text.

    Raises `ValueError` with one line that names the place, for text that is no YAML or that aliases
    or nesting would make too large.
    """
    try:
        _require_bounds(text)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = str(error.problem or error).splitlines()[0]
        # The values that it quotes are not those of the text.
        problem = _DUPLICATE.sub(r'the key "\1" was given before; remove one of the two', problem)
        raise ValueError(f"line {line}: {problem}") from None
    except (YAMLError, TypeError, ValueError, RecursionError, LookupError) as error:
        raise ValueError(first_line(error)) from None


def _require_bounds(text: str) -> None:
    """Raise `ValueError` for too many values, counting those that aliases stand for."""
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _MAX_DEPTH:
                raise ValueError(f"{_place(event)}: nested more than {_MAX_DEPTH} deep")
            continue
        if isinstance(event, CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, AliasEvent):
            anchor = None
            if event.anchor not in anchors:
                raise ValueError(f"{_place(event)}: *{event.anchor} stands for nothing before it")
            size = anchors[event.anchor]
        else:
            continue
        if anchor:
            anchors[anchor] = size
        above, total = open_nodes[-1]
        open_nodes[-1] = (above, total + size)
        if total + size > _MAX_VALUES:
            raise ValueError(f"{_place(event)}: more than {_MAX_VALUES} values, with aliases")


def _place(event: NodeEvent) -> str:
    return f"line {event.start_mark.line + 1}"
