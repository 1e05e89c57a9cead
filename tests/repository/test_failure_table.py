"""The table of failures in docs/kubernetes.md, and the tests on a real control plane that show it."""

import re

from tests.support.paths import ROOT

ROW = re.compile(r'@pytest\.mark\.row\("(.+?)"\)')


def rows() -> list[str]:
    """The first cells of the table."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    table = page.split("| seen | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    return [line.strip("| ").split(" | ")[0] for line in table.splitlines()]


def shown() -> set[str]:
    """The beginnings of rows that tests are marked with."""
    files = (ROOT / "tests/kube").glob("test_*.py")
    return {row for file in files for row in ROW.findall(file.read_text())}


def test_every_row_is_shown_by_a_test_and_no_test_shows_another() -> None:
    assert len(rows()) > 10
    assert [row for row in rows() if not row.startswith(tuple(shown()))] == []
    assert [
        beginning for beginning in shown() if not any(r.startswith(beginning) for r in rows())
    ] == []
