"""The rooms of the package: imports lead downwards, and pages lead somewhere."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "worker"
FLOORS = (  # from the top; a room imports from lower floors alone
    ("cli",),
    ("check", "launch", "trackers"),
    ("report",),
    ("apply", "sweep", "train"),
    ("job", "record"),
    ("learn",),
    ("checkpoint", "ranks"),
    ("ingest", "model"),
    ("data", "judge"),
    ("manifest", "metrics"),
    ("store",),
    ("base",),
)
"""`base` is the files that lie in no room."""
EXCEPTIONS = {("base", "cli"), ("check", "launch")}
"""`python -m worker`; and a check starts as a launch does."""


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "base"


def imports(path: Path) -> Iterator[str]:
    """The rooms that a file imports from, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "worker":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                room = name.split(".")[1]
                yield room if (PACKAGE / room).is_dir() else "base"


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        found[room_of(path)] |= set(imports(path)) - {room_of(path)}
    return found


def picture() -> str:
    """A mermaid graph of the arrows that no detour along other arrows makes unnecessary."""
    direct = {room: targets - {"base"} for room, targets in arrows().items() if room != "base"}
    lines = ["flowchart TD"]
    for floor in FLOORS[:-1]:
        for room in floor:
            text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
            first = text.split("\n")[0].rstrip(".").split(":")[0].replace('"', "'")
            lines.append(f'  {room}["<b>{room}</b><br>{first}"]')
    for room in sorted(direct):
        below = set().union(*(reachable(direct, target) for target in direct[room]))
        lines += [f"  {room} --> {target}" for target in sorted(direct[room] - below)]
    return "\n".join(["```mermaid", *lines, "```"]) + "\n"


def reachable(direct: dict[str, set[str]], room: str) -> set[str]:
    """The rooms that one or more arrows lead to."""
    targets = direct.get(room, set())
    return targets.union(*(reachable(direct, target) for target in targets))


def test_imports_lead_downwards() -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    up = [
        (room, target)
        for room, targets in arrows().items()
        for target in targets
        if floor_of[target] <= floor_of[room] and (room, target) not in EXCEPTIONS
    ]
    assert not up


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms | {"base"} == {room for rooms in FLOORS for room in rooms}


def test_tests_are_found_by_the_name_of_what_they_test() -> None:
    tests = ROOT / "tests"
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = [
        *tests.glob("test_*.py"),
        *(path for room in rooms for path in tests.glob(f"{room}/*.py")),
    ]
    strays = [
        path.name
        for path in files
        if path.stem.startswith("test_")
        and not (PACKAGE / path.relative_to(tests))
        .with_stem(path.stem.removeprefix("test_"))
        .exists()
    ]
    assert not strays, "tests of whole jobs are in tests/jobs"


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md")), ids=str
)
def test_links_and_paths_in_the_docs_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:worker|tests|bench|k8s|slurm|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    rooms = "|".join(room for rooms in FLOORS for room in rooms)
    for path in re.findall(rf"`((?:{rooms})/\w+\.py)`", text):
        assert (PACKAGE / path).exists(), path


def test_anchors_in_the_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            if "://" in link:
                continue
            target = (page.parent / link) if link else page
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, (page.name, link, anchor)
