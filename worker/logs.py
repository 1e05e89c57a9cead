"""Log lines for people or machines, and the live line of a terminal."""

import json
import logging
import shutil
import sys
import time
from typing import Any, TextIO

_CLEAR_LINE = "\r\x1b[K"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """`12:00:01 message`, with the level where it is not just information."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of text, and a traceback if there is one."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Replaces the live line, which the next update draws again."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream.write(_CLEAR_LINE)
        super().emit(record)


def configure_logs(style: str) -> None:
    """Send the worker's log to stderr; `style` is `auto`, `text` or `json`."""
    handler: logging.Handler
    handler = _TerminalHandler(sys.stderr) if is_live(style) else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger("worker")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


def is_live(style: str) -> bool:
    """Whether a live line is wanted: on a terminal, unless a style was asked for."""
    return style == "auto" and sys.stderr.isatty()


def show_live(text: str) -> None:
    """Draw the live line, cut to the terminal's width."""
    sys.stderr.write(_CLEAR_LINE + text[: shutil.get_terminal_size().columns - 1])
    sys.stderr.flush()


def end_live() -> None:
    """Remove the live line."""
    sys.stderr.write(_CLEAR_LINE)
    sys.stderr.flush()


def count(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
