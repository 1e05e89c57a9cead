"""The table of `worker check`."""

import pytest

from worker.check.table import Table


def test_an_unforeseen_end_of_a_probe_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> str:
        raise ValueError("hunter2")

    table = Table()
    assert not table.look("thing", probe)
    assert table.look("other", lambda: "fine")
    assert table.code == 70
    assert "ValueError" in str(table)
    assert "hunter2" not in str(table)
