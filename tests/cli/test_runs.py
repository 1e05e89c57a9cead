"""Commands that inspect runs."""

from pathlib import Path
from typing import Any

from tests.support.processes import Run, Write, run_watching_imports
from worker.cli.runs import _wrapped


def test_audit_without_a_ledger(run: Run, write: Write, job: dict[str, Any]) -> None:
    job["record"]["samples"] = False
    assert run("train", write(job)).code == 0
    ended = run("audit", job["output"])
    assert ended.code == 78
    assert "record: {samples: true}" in ended.err


def test_no_row_of_a_watch_is_wider_than_the_terminal_and_nothing_is_lost() -> None:
    text = "job  a\n\nwhy  " + "stopped on request after step 14, committed; " * 3
    rows = _wrapped(text, 40)
    assert max(map(len, rows)) <= 40
    assert " ".join(" ".join(rows).split()) == " ".join(text.split())


def test_looking_at_a_run_imports_nothing_slow(
    run: Run, write: Write, job: dict[str, Any], tmp_path: Path
) -> None:
    assert run("train", write(job)).code == 0
    output = job["output"]
    for arguments in (
        ("status", output),
        ("report", output, "--out", "page.html"),
        ("compare", output, output),
        ("audit", output),
    ):
        ended = run_watching_imports(*arguments, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == "False", arguments
