"""Commands that inspect runs."""

from typing import Any

from tests.support.processes import Run, Write


def test_audit_without_a_ledger(run: Run, write: Write, job: dict[str, Any]) -> None:
    job["record"]["samples"] = False
    assert run("train", write(job)).code == 0
    ended = run("audit", job["output"])
    assert ended.code == 78
    assert "record: {samples: true}" in ended.err
