"""The rows of a preflight: each probe with its state, its finding and the remedy."""

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.errors import ExitCode, InfrastructureError, WorkerError, most_fatal
from worker.logs import count

CREDENTIALS = "credentials"
"""Name of the row that must not fail for storage to be probed."""
NO_STORAGE = "storage cannot be used, see above"


class Caution(Exception):
    """A finding that does not keep the job from running; the exception's text describes it."""


_BREAK = "\n  "  # separates the lines of a multi-line error


@dataclass(frozen=True, kw_only=True)
class Row:
    """A probe and its finding."""

    name: str
    """Name of the probe."""
    state: str
    """`ok`, `warn`, `FAIL`, or `-` if the probe was skipped."""
    text: str
    """The finding, and the remedy if one is needed."""
    code: int = ExitCode.DONE
    """The exit code for the finding; 0 if a start would not fail because of it."""


@dataclass
class Table:
    """The rows so far; a probe returns its finding, or raises `Caution` or `WorkerError`."""

    rows: list[Row] = field(default_factory=list)

    def look(self, name: str, probe: Callable[[], str]) -> bool:
        """Run a probe and add its row; return False if the probe failed."""
        try:
            self.rows.append(Row(name=name, state="ok", text=probe()))
        except Caution as caution:
            self.rows.append(Row(name=name, state="warn", text=str(caution)))
        except WorkerError as error:
            self.rows.append(Row(name=name, state="FAIL", text=str(error), code=error.code))
            return False
        except Exception as error:  # its text may contain the value of a variable, even a password
            text = f"failed with {type(error).__name__}; please report it"
            self.rows.append(Row(name=name, state="FAIL", text=text, code=ExitCode.BUG))
            return False
        return True

    def skip(self, name: str, reason: str) -> None:
        """Add a row for a probe that was skipped."""
        self.rows.append(Row(name=name, state="-", text=f"not checked: {reason}"))

    @property
    def storage_fails(self) -> bool:
        """Whether storage is unusable and further requests would only waste time."""
        return any(
            row.code == InfrastructureError.code
            or (row.name == CREDENTIALS and row.state == "FAIL")
            for row in self.rows
        )

    @property
    def code(self) -> int:
        """The most severe exit code of all rows."""
        return most_fatal([ExitCode.DONE, *(row.code for row in self.rows)])

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        indent = "\n" + " " * (
            width + len("FAIL    ")
        )  # for the continuation lines of a multi-line text
        lines = [
            f"{row.state:<4}  {row.name:<{width}}  {row.text.replace(_BREAK, indent)}"
            for row in self.rows
        ]
        failed = sum(row.state == "FAIL" for row in self.rows)
        warned = sum(row.state == "warn" for row in self.rows)
        end = f"{failed} of {len(lines)} checks failed" if failed else "all checks passed"
        warnings = f", {count(warned, 'warning')}" if warned else ""
        return "\n".join([*lines, end + warnings])
