"""Log lines for people or machines, and the live status line of a terminal."""

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from typing import Any, TextIO

from worker.plain import plain
from worker.redaction import redacted, redacted_data

_CLEAR_LINE = "\r\x1b[K"
_CLUSTER = ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID")
_MAX_REMEMBERED = 1000

_bound: dict[str, Any] = {}


def bind(**fields: Any) -> None:
    """Add fields such as job, attempt and rank to every further log line of this process."""
    _bound.update(fields)


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object per line: time, level, message and event fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_bound,
            **plain(getattr(record, "fields", {})),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(redacted_data(line))


class TextFormatter(logging.Formatter):
    """Formatter of lines such as `12:00:01 message`, with the level unless it is info."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of text, followed by a traceback if there is one."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        if _bound.get("rank"):
            level = f"rank {_bound['rank']}: {level}"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {level}{record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return redacted(text)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Handler that overwrites the live line, which the next update redraws."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self.stream.write(_CLEAR_LINE)
        super().emit(record)


class _Once(logging.Filter):
    """Filter that passes each warning once, as a persistent fault would hide everything else."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        if text in self._seen:
            return False
        if len(self._seen) >= _MAX_REMEMBERED:
            self._seen.clear()
        self._seen.add(text)
        return True


def configure_logs(style: str) -> None:
    """Send the log to stderr; `style` is `auto`, `text` or `json`.

    Warnings from libraries are logged too, so that JSON output stays JSON.
    """
    handler: logging.Handler
    handler = _TerminalHandler(sys.stderr) if is_live(style) else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if _is_json(style) else TextFormatter())
    # On the handler, as the filters of a logger do not see records of the loggers below it.
    handler.addFilter(_Once())
    logging.captureWarnings(capture=True)
    for name in ("worker", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _is_json(style: str) -> bool:
    """Return whether to log JSON: if requested, or by default in a cluster without a terminal."""
    in_cluster = any(name in os.environ for name in _CLUSTER)
    return style == "json" or (style == "auto" and in_cluster and not sys.stderr.isatty())


def is_live(style: str) -> bool:
    """Return whether to draw a live line: on a terminal, unless a style was set."""
    return style == "auto" and sys.stderr.isatty()


def show_live(text: str) -> None:
    """Draw the live line; fields, two blanks apart, that do not fit the terminal are left out."""
    # One column stays free: text that wraps could not be cleared, as only the last line would be.
    width = shutil.get_terminal_size().columns - 1
    if len(text) > width:  # half a number would be read as another one
        text = text[:width].rpartition("  ")[0] or text[:width]
    _draw(_CLEAR_LINE + text)


def end_live() -> None:
    """Remove the live line."""
    _draw(_CLEAR_LINE)


def _draw(text: str) -> None:
    """Write to the terminal; if it is gone, training and commits must continue."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def count(number: int, noun: str) -> str:
    """Return a count with its noun, such as `1 shard` or `2 shards`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
