"""Parser of YAML 1.2 or JSON text into plain data, in bounded time and memory."""

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
_CLEARER = (
    (
        "mapping values are not allowed",
        "indented farther than the key above it, or a value with a colon needs quotation marks",
    ),
    (
        "<block end>, but found '<scalar>'",
        "text after a closing quotation mark or bracket (quote the whole value), or indented "
        "differently from the keys above it",
    ),
    ("<block end>, but found ','", "a comma after the value; remove it"),
    ("found ']'", "an unmatched closing bracket"),
    ("found '}'", "an unmatched closing brace"),
    ("found (']'", "an unmatched closing bracket"),
    ("found ('}'", "an unmatched closing brace"),
    ("could not find expected ':'", "the key before this line needs a colon and a space after it"),
    ("unhashable key", "nested braces, as in a template that was not filled in; quote the value"),
    ("found another document", "a second document after `---`; keep one"),
    (
        "unknown escape character",
        "a backslash in a double-quoted value; use single quotation marks",
    ),
    ("expected <block end>", "indented differently from the keys above it; align them"),
    ("'\\t' that cannot start", "a tab; indent with spaces"),
    ("expected ',' or", "a comma is missing, or a bracket or brace is not closed"),
    ("unexpected end of stream", "a quotation mark before this line is not closed"),
    (
        "expected alphabetic or numeric",
        'a value that begins with * or & needs quotation marks: "*"',
    ),
)
"""Problems as the parser words them, and as users understand them."""
_DUPLICATE = re.compile(r'found duplicate key "(.*?)" with value .*')


def parse_yaml(text: str) -> Any:
    """Parse YAML or JSON text into plain data.

    Raises `ValueError` with one line that names the position, if the text is not valid YAML, is
    nested too deeply or has too many values once aliases are expanded.
    """
    try:
        _require_bounds(text)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = str(error.problem or error).splitlines()[0]
        # The values that ruamel quotes in its message are not those in the text.
        problem = next((ours for theirs, ours in _CLEARER if theirs in problem), problem)
        problem = _DUPLICATE.sub(r'the key "\1" appears twice; remove one of the two', problem)
        raise ValueError(f"line {line}: {problem}") from None
    except (YAMLError, TypeError, ValueError, RecursionError, LookupError) as error:
        raise ValueError(first_line(error)) from None


def _require_bounds(text: str) -> None:
    """Raise `ValueError` if nesting is too deep or, with aliases expanded, values are too many."""
    # Counts values in the event stream, before any are built: nested aliases can stand for billions
    # of values in a few lines ("billion laughs").
    # `anchors` holds the expanded size of each finished node; `open_nodes` is a stack of unfinished
    # ones with their sizes so far, below a root for the document. An anchor counts only once its
    # node is finished, so an alias to an enclosing node is refused.
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _MAX_DEPTH:
                raise ValueError(f"{_place(event)}: nested more than {_MAX_DEPTH} levels deep")
            continue
        if isinstance(event, CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, AliasEvent):
            anchor = None
            if event.anchor not in anchors:
                raise ValueError(f"{_place(event)}: *{event.anchor} refers to no earlier anchor")
            size = anchors[event.anchor]
        else:
            continue
        if anchor:
            anchors[anchor] = size
        above, total = open_nodes[-1]
        open_nodes[-1] = (above, total + size)
        if total + size > _MAX_VALUES:
            raise ValueError(
                f"{_place(event)}: more than {_MAX_VALUES} values with aliases expanded"
            )


def _place(event: NodeEvent) -> str:
    return f"line {event.start_mark.line + 1}"
