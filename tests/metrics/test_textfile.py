"""Metrics in files for a node exporter."""

import math
import time
from pathlib import Path

import pytest

from tests.support.exporting import RUN, metrics_of, running
from worker.errors import ExitCode
from worker.metrics.exporters import announce
from worker.metrics.run_labels import Owner
from worker.metrics.textfile import textfile


def test_files_of_ranks_go_and_that_of_the_outcome_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_METRICS_TEXTFILE", str(tmp_path))
    orphan = textfile(str(tmp_path), RUN, 1)  # of a rank that was killed
    for file in (orphan, textfile(str(tmp_path), RUN)):
        file.write_text("old")
    with running(metrics_of()) as outcome:
        while not textfile(str(tmp_path), RUN, 0).exists():
            time.sleep(0.01)
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())
    orphan.write_text("old")
    announce(RUN, ExitCode.BUG, outcome, lambda: math.inf)
    (file,) = tmp_path.iterdir()
    assert "worker_exit_code" in file.read_text()
    # Another run of the same job's name must not share it.
    assert file != textfile(str(tmp_path), Owner(RUN.job, "s3://bucket/other/"))
