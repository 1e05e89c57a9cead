"""Checks of docs/style.md that a machine can make: docstrings, names of limits, width of prose.

.ci/style.py [FILE ...]    default: all of worker/, bench/ and the Markdown pages
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_OPENINGS = {
    *("All", "And", "As", "At", "But", "By", "From", "How", "In", "It", "Not", "Of", "On", "One"),
    *("Or", "That", "Their", "Those", "To", "Two", "What", "Where", "Whether", "Which", "Who"),
    *("Whose", "With"),
}
_LIMIT = re.compile(r"\b_?(MOST|LEAST|FEWEST)_\w+")
_PHRASES = {
    "goes on": "resumes, continues",
    "going on": "resuming, continuing",
    "go on": "resume, continue",
    "went on": "resumed, continued",
    "but for": "except",
    "of which": "reword",
    "stands in the way": "fails",
    "is told": "is reported",
    "are told": "are reported",
    "so long as": "as long as",
    "seldom": "rarely",
    "likewise": "reword",
    "look again": "check again, warning",
    "nothing but": "only",
}
_PHRASE = re.compile(rf"\b({'|'.join(_PHRASES)})\b", re.IGNORECASE)
_SPACED_PERCENT = re.compile(r"\d[ \u00a0\u202f]%(?! [\w(])")
_MAX_PROSE = 120
_CHECKED = ("worker/**/*.py", "bench/**/*.py", "docs/*.md", "*.md")


def main(names: list[str]) -> int:
    """Print every finding; returns 1 if there is one."""
    paths = [ROOT / name for name in names] or [
        path for pattern in _CHECKED for path in sorted(ROOT.glob(pattern))
    ]
    found = [line for path in paths for line in _check(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


def _check(path: Path) -> Iterator[str]:
    if path == ROOT / "docs/style.md":  # which quotes what it forbids
        return
    if path.suffix == ".md":
        yield from _check_prose(path)
    elif path.suffix == ".py":
        yield from _check_code(path)


def _check_prose(path: Path) -> Iterator[str]:
    in_code = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        in_code ^= line.startswith("```")
        if in_code:
            continue
        if len(line) > _MAX_PROSE and not line.startswith(("|", "![", "- [")):
            yield f"{_at(path, number)}: {len(line)} characters of prose, more than {_MAX_PROSE}"
        yield from _phrases(path, number, line)


def _check_code(path: Path) -> Iterator[str]:
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), start=1):
        yield from _phrases(path, number, line)
        if _LIMIT.search(line):
            yield f"{_at(path, number)}: {_LIMIT.search(line)[0]}: call limits MAX_ or MIN_"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        number = node.body[0].lineno if node.body else 1
        opening = (docstring or "").split("\n")[0]
        if opening.startswith("Whether ") and _is_property(node):
            continue
        if docstring and opening.split()[0].strip(",:;") in _OPENINGS:
            yield f"{_at(path, number)}: opens with {opening.split()[0]!r}: {opening}"


def _is_property(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(isinstance(name, ast.Name) and name.id == "property" for name in decorators)


def _phrases(path: Path, number: int, line: str) -> Iterator[str]:
    for match in _PHRASE.finditer(line):
        phrase = match[0].lower()
        yield f"{_at(path, number)}: {phrase!r}: write {_PHRASES[phrase]!r}"
    if _SPACED_PERCENT.search(line):
        yield f"{_at(path, number)}: a space before the percent sign"


def _at(path: Path, number: int) -> str:
    return f"{path.relative_to(ROOT)}:{number}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
