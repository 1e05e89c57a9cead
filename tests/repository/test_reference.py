"""The reference pages say what the code says."""

import re
from pathlib import Path

import pytest

from tests.repository.generated_docs import PAGES, page_of, with_generated
from tests.support.paths import ROOT
from worker.environment import VARIABLES
from worker.manifest.reference import describe_manifest

DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_generated_is_up_to_date(page: str) -> None:
    assert page_of(page).read_text() == with_generated(page), "run `make docs`"


def test_every_manifest_key_is_described() -> None:
    rows = [line for line in describe_manifest().splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.endswith("|  |")]


def test_every_variable_that_is_read_is_described() -> None:
    read = {
        name
        for path in (ROOT / "worker").rglob("*.py")
        for name in re.findall(r'"(WORKER_[A-Z_]+)"', path.read_text())
    }
    page = (DOCS / "environment.md").read_text()
    assert set(re.findall(r"WORKER_[A-Z_]+", page)) == read == set(VARIABLES)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert page.name == "README.md" or f"({page.name})" in (DOCS / "README.md").read_text()
