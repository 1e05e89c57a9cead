"""The reference pages say what the code says."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from worker.environment import VARIABLES, describe_environment
from worker.errors import ExitCode
from worker.manifest.reference import describe_manifest

DOCS = ROOT / "docs"


def test_the_manifest_page_has_every_key_as_the_code_describes_it() -> None:
    table = describe_manifest()
    assert table in (DOCS / "manifest.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    undescribed = [row for row in rows if row.endswith("|  |")]
    assert not undescribed


def test_the_environment_page_has_every_variable_as_the_code_describes_it() -> None:
    page = (DOCS / "environment.md").read_text()
    assert describe_environment() in page
    read = {
        name
        for path in (ROOT / "worker").rglob("*.py")
        for name in re.findall(r'"(WORKER_[A-Z_]+)"', path.read_text())
    }
    assert set(re.findall(r"WORKER_[A-Z_]+", page)) == read == set(VARIABLES)


def test_the_page_of_exit_codes_has_every_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "exit-codes.md").read_text(), re.MULTILINE)
    assert {int(code) for code in rows} == {int(code) for code in ExitCode}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert page.name == "README.md" or f"({page.name})" in (DOCS / "README.md").read_text()
