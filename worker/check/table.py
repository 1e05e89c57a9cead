"""Rows of a preflight: what was looked at, its state, what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.errors import ExitCode, InfrastructureError, WorkerError, most_fatal
from worker.logs import count

CREDENTIALS = "credentials"
"""The row without which storage is not looked at."""
NO_STORAGE = "storage cannot be used, see above"


class Caution(Exception):
    """A probe found something that does not keep the job from running; its text says what."""


_BREAK = "\n  "  # between the lines of an error that has several


@dataclass(frozen=True, kw_only=True)
class Row:
    """A probe and its finding."""

    name: str
    """What was probed."""
    state: str
    """`ok`, `warn`, `FAIL`, or `-` for what could not be looked at."""
    text: str
    """The finding, and the remedy if there is something to do."""
    code: int = ExitCode.DONE
    """The exit code that the finding asks for; 0 if a start would not fail on it."""


@dataclass
class Table:
    """The rows so far; a probe returns its finding, or raises `Caution` or `WorkerError`."""

    rows: list[Row] = field(default_factory=list)

    def look(self, name: str, probe: Callable[[], str]) -> bool:
        """Add a row; false where the probe failed."""
        try:
            self.rows.append(Row(name=name, state="ok", text=probe()))
        except Caution as caution:
            self.rows.append(Row(name=name, state="warn", text=str(caution)))
        except WorkerError as error:
            self.rows.append(Row(name=name, state="FAIL", text=str(error), code=error.code))
            return False
        except Exception as error:  # its text may hold what a variable holds, a password too
            text = f"ended with {type(error).__name__}, please report it"
            self.rows.append(Row(name=name, state="FAIL", text=text, code=ExitCode.BUG))
            return False
        return True

    def skip(self, name: str, reason: str) -> None:
        """Add a row for what was not looked at."""
        self.rows.append(Row(name=name, state="-", text=f"not looked at: {reason}"))

    @property
    def storage_fails(self) -> bool:
        """Whether storage is unusable, so that asking again would only take time."""
        return any(
            row.code == InfrastructureError.code
            or (row.name == CREDENTIALS and row.state == "FAIL")
            for row in self.rows
        )

    @property
    def code(self) -> int:
        """The exit code of all rows."""
        return most_fatal([ExitCode.DONE, *(row.code for row in self.rows)])

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        indent = "\n" + " " * (width + len("FAIL    "))  # of a text that has several lines
        lines = [
            f"{row.state:<4}  {row.name:<{width}}  {row.text.replace(_BREAK, indent)}"
            for row in self.rows
        ]
        failed = sum(row.state == "FAIL" for row in self.rows)
        warned = sum(row.state == "warn" for row in self.rows)
        end = f"{failed} of {len(lines)} fail" if failed else "all checks passed"
        warnings = f", {count(warned, 'warning')}" if warned else ""
        return "\n".join([*lines, end + warnings])
