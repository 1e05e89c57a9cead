"""Log lines for machines and for people."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator

import pytest

from worker import logs

log = logging.getLogger("worker.test")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards logs go where they did before."""
    loggers = [logging.getLogger(name) for name in ("worker", "py.warnings")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    monkeypatch.setattr(logs, "_bound", {})
    yield
    logging.captureWarnings(capture=False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


Captured = pytest.CaptureFixture[str]


def lines(captured: Captured) -> list[str]:
    return captured.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("style", "place", "is_json"),
    [
        ("auto", None, False),
        ("auto", "KUBERNETES_SERVICE_HOST", True),
        ("auto", "SLURM_JOB_ID", True),
        ("text", "SLURM_JOB_ID", False),
        ("json", None, True),
    ],
)
def test_a_cluster_gets_json_and_people_text(
    style: str,
    place: str | None,
    is_json: bool,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if place:
        monkeypatch.setenv(place, "1")
    logs.configure_logs(style)
    log.info("hello")
    (line,) = lines(capsys)
    assert line.startswith("{") == is_json


def test_a_line_says_whose_it_is(capsys: Captured) -> None:
    logs.configure_logs("json")
    logs.bind(job="ants", rank=3)
    log.info("one")
    logs.bind(attempt=2)
    log.info("two", extra={"fields": {"event": "step", "step": 7}})
    first, second = map(json.loads, lines(capsys))
    assert (first["job"], first["rank"], first["message"]) == ("ants", 3, "one")
    assert (second["attempt"], second["step"]) == (2, 7)
    logs.configure_logs("text")
    log.warning("three")
    assert lines(capsys)[-1].endswith("rank 3: warning: three")


def test_a_warning_is_told_once_and_news_always(capsys: Captured) -> None:
    logs.configure_logs("json")
    for number in (1, 1, 2):
        log.warning("shard %d is slow", number)
        log.info("step")
        log.error("lost")
    told = [json.loads(line)["message"] for line in lines(capsys)]
    assert told.count("shard 1 is slow") == 1
    assert told.count("shard 2 is slow") == 1
    assert told.count("step") == told.count("lost") == 3


def test_warnings_of_libraries_and_tracebacks_are_one_line_each(capsys: Captured) -> None:
    logs.configure_logs("json")
    warnings.warn("old\nhabits", stacklevel=1)
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError as error:
        log.error("unexpected", exc_info=error)
    warning, failure = map(json.loads, lines(capsys))
    assert "old\nhabits" in warning["message"]
    assert "in two" in failure["traceback"]


def test_the_live_line_leaves_out_fields_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of `1e-05` would be read as another number."""
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((30, 24)))
    logs.show_live("step 4/24  loss 0.650  lr 1e-05 to 0.001")
    assert capsys.readouterr().err.endswith("step 4/24  loss 0.650")
