"""Settings in a job's environment: our own variables, with their bounds and meanings."""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from worker.errors import ConfigurationError

LAST_PORT = 65535
# Stricter than int(), which also accepts "1_000", " 5" and digits of other scripts.
_DIGITS = re.compile(r"[0-9]{1,9}")
_MAX_SECONDS = 366 * 86_400
_MAX_SHOWN = 60

T = TypeVar("T")


def whole_number(
    env: Mapping[str, str],
    name: str,
    *,
    default: str | None,
    least: int = 0,
    most: int | None = None,
) -> int:
    """Return the whole number that a variable holds.

    Args:
        env: The environment.
        name: The variable.
        default: The value if the variable is not set; None if it must be set.
        least: The smallest valid number.
        most: The largest valid number; None if there is no limit.

    Raises:
        ConfigurationError: The variable holds anything else, or is not set but must be.
    """
    text = env.get(name, default)
    if text is None:
        raise ConfigurationError(f"{name}: must be set to a whole number")
    if not _DIGITS.fullmatch(text) or int(text) < least or (most and int(text) > most):
        bounds = f"from {least} to {most}" if most else f"from {least}"
        raise ConfigurationError(
            f"{name}: must be a whole number {bounds}, not {text[:_MAX_SHOWN]!r}"
        )
    return int(text)


class Variable(Generic[T]):
    """An environment variable of this program, as an attribute of `Settings`.

    Args:
        name: The name of the variable.
        default: The value if the variable is empty or not set.
        text: The meaning of the variable, with its unit.
    """

    def __init__(self, name: str, default: T, text: str) -> None:
        self.name, self.default, self.text = name, default, text

    @overload
    def __get__(self, settings: None, owner: type) -> "Variable[T]": ...
    @overload
    def __get__(self, settings: "Settings", owner: type) -> T: ...
    def __get__(self, settings: "Settings | None", owner: type) -> "Variable[T] | T":
        """Return the value, or the default if the variable is empty or not set.

        Raises `ConfigurationError`, naming the variable, if its value is malformed.
        """
        if settings is None:
            return self
        return self.parse(settings.env) if settings.env.get(self.name) else self.default

    def parse(self, env: Mapping[str, str]) -> Any:
        """Return the value of the variable, which must be set."""
        return env[self.name]

    @property
    def meaning(self) -> str:
        """Return the meaning with its bounds."""
        return self.text

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers, which cannot hold a secret."""
        return isinstance(self, _Whole | _Seconds)


class _Whole(Variable[T]):
    def __init__(
        self, name: str, default: T, text: str, *, least: int = 0, most: int | None = None
    ) -> None:
        super().__init__(name, default, text)
        self._least, self._most = least, most

    @property
    def meaning(self) -> str:
        """Return the meaning with its bounds."""
        least = f"at least {self._least}" if self._least > 1 else ""
        most = f"at most {self._most}" if self._most else ""
        bounds = ", ".join(filter(None, (least, most)))
        return f"{self.text} ({bounds})" if bounds else self.text

    def parse(self, env: Mapping[str, str]) -> int:
        return whole_number(env, self.name, default=None, least=self._least, most=self._most)


class _Seconds(Variable[float]):
    def parse(self, env: Mapping[str, str]) -> float:
        text = env[self.name]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # Also true for NaN, which fails every comparison.
        if not 0 < value <= _MAX_SECONDS:
            raise ConfigurationError(
                f"{self.name}: must be a number of seconds, not {text[:_MAX_SHOWN]!r}"
            )
        return value


@dataclass(frozen=True)
class Settings:
    """The settings in an environment, each parsed on access."""

    env: Mapping[str, str]

    # These have no annotations, so they are class attributes and not fields of the dataclass.
    store_deadline_seconds = _Seconds(
        "WORKER_STORE_DEADLINE_SECONDS",
        60.0,
        "seconds that a storage request may take, including retries, plus 10 s per MB",
    )
    grace_seconds = _Whole(
        "WORKER_GRACE_SECONDS", 30, "seconds between SIGTERM and SIGKILL on this system", least=1
    )
    stall_seconds = _Whole(
        "WORKER_STALL_SECONDS",
        900,
        "a rank that makes no progress for this many seconds prints its stacks and exits with 69",
        least=1,
    )
    takeover_seconds = _Seconds(
        "WORKER_TAKEOVER_SECONDS",
        120.0,
        "a worker of a sweep that has not been heard of for this many seconds loses its trial to "
        "another",
    )
    rendezvous_seconds = _Whole(
        "WORKER_RENDEZVOUS_SECONDS", 300, "seconds in which the ranks must find each other", least=1
    )
    collective_seconds = _Whole(
        "WORKER_COLLECTIVE_SECONDS",
        1200,
        "seconds that a rank waits for others in a collective; must exceed `WORKER_STALL_SECONDS`",
        least=1,
    )
    metrics_port = _Whole(
        "WORKER_METRICS_PORT",
        0,
        "port on which the first rank of a node serves Prometheus metrics, the next rank on "
        "the next port; 0: no port",
        most=LAST_PORT,
    )
    pushgateway = Variable(
        "WORKER_PUSHGATEWAY",
        "",
        "address of a Pushgateway that gets the metrics every 15 s (unless `WORKER_METRICS_PORT` "
        "is set), and the outcome of the attempt at the end",
    )
    metrics_textfile = Variable(
        "WORKER_METRICS_TEXTFILE",
        "",
        "folder to write the metrics to, for node exporter's textfile collector",
    )
    loader_threads = _Whole[int | None](
        "WORKER_LOADER_THREADS",
        None,
        "decode threads per rank, two per process (default: one per core of the rank); 0: decode "
        "in the training thread",
    )
    read_memory_mib = _Whole(
        "WORKER_READ_MEMORY_MIB", 512, "maximum MiB that a rank reads ahead and keeps", least=16
    )
    scratch = Variable(
        "WORKER_SCRATCH",
        "",
        "folder that the ranks of a node share as a cache of read and decoded data",
    )
    scratch_gib = _Whole(
        "WORKER_SCRATCH_GIB", 10, "maximum size of the `WORKER_SCRATCH` cache in GiB", least=1
    )
    revision = Variable(
        "WORKER_REVISION",
        "",
        "revision of the code, recorded with every run; set in the container image",
    )
    nodes = _Whole[int | None](
        "WORKER_NODES", None, "number of pods in a Kubernetes Indexed Job", least=1
    )

    @staticmethod
    def from_env() -> "Settings":
        """Return the settings of this process."""
        return Settings(os.environ)

    def require_valid(self) -> None:
        """Raise `ConfigurationError` if a setting is malformed."""
        for variable in VARIABLES.values():
            variable.__get__(self, Settings)

    def unknown(self) -> list[str]:
        """Return a message for each unknown variable that resembles one of ours.

        Other unknown variables are ignored, as they may belong to another program.
        """
        strange = [name for name in self.env if name.startswith("WORKER_")]
        # Kubernetes sets such variables for a Service named `worker`.
        strange = [name for name in strange if not re.search("_SERVICE|_PORT_", name)]
        near = {name: difflib.get_close_matches(name, VARIABLES, 1, 0.85) for name in strange}
        return [
            f"{name} is not known; did you mean {known[0]}?"
            for name, known in near.items()
            if name not in VARIABLES and known
        ]


VARIABLES: dict[str, Variable[Any]] = {
    variable.name: variable
    for variable in vars(Settings).values()
    if isinstance(variable, Variable)
}
"""Environment variables of this program, by name."""


def describe_environment() -> str:
    """Return the variables as the Markdown table of docs/environment.md."""
    rows = [
        f"| `{v.name}` | {'' if v.default in (None, '') else f'{v.default:g}'} | {v.meaning} |"
        for v in VARIABLES.values()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
