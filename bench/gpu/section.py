"""Sections that run in a fork each, so that a mistake or a hang costs one of them."""

import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The place and size of measurements: `folder` for data, `dry` for tiny sizes on the CPU."""

    folder: Path
    dry: bool


@dataclass(frozen=True)
class Section:
    """A part of the table, and how many seconds it may take."""

    name: str
    measure: Callable[[Setting], Result]
    seconds: float


def forked(section: Section, setting: Setting, deadline: float) -> Result:
    """Return what a section has measured, or how it ended instead.

    Args:
        section: What to run; CUDA starts in its fork, never in this process.
        setting: Passed on.
        deadline: When all must be over, on `time.monotonic`.
    """
    handle, name = tempfile.mkstemp(dir=setting.folder)
    os.close(handle)
    result = Path(name)
    began = time.monotonic()
    end = min(deadline, began + section.seconds)
    child = os.fork()
    if child == 0:
        _become(section, setting, result)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > end:
            break
        time.sleep(0.02)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"failed": f"no end after {time.monotonic() - began:.0f} s"}
    text = result.read_text()
    return json.loads(text) if text else {"failed": f"status {os.waitstatus_to_exitcode(status)}"}


def _become(section: Section, setting: Setting, result: Path) -> None:
    os.setsid()
    try:
        found = section.measure(setting)
    except BaseException:
        found = {"failed": traceback.format_exc()[-1500:]}
    result.write_text(json.dumps(found, default=str))
    os._exit(0)
