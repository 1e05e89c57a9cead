"""Settings of the place that a job runs at, from the environment."""

import difflib
import math
import os
import re
from collections.abc import Mapping

from worker.errors import ConfigurationError

LAST_PORT = 65535
_DIGITS = re.compile(r"[0-9]{1,9}")
_MAX_SECONDS = 366 * 86_400
_MAX_SHOWN = 60


def whole_number(env: Mapping[str, str], name: str, default: str | None, least: int = 0) -> int:
    """Return the whole number that a variable holds.

    Args:
        env: The environment.
        name: The variable.
        default: What to take if it is not set; None if it must be.
        least: The smallest number that makes sense.

    Raises:
        ConfigurationError: It holds anything else.
    """
    text = env.get(name, default)
    if text is None:
        raise ConfigurationError(f"{name}: must be set to a whole number")
    if not _DIGITS.fullmatch(text) or int(text) < least:
        raise ConfigurationError(
            f"{name}: must be a whole number from {least}, not {text[:_MAX_SHOWN]!r}"
        )
    return int(text)


def number(name: str, default: int, least: int = 0) -> int:
    """Return the whole number that a variable of this process holds; see `whole_number`.

    Args:
        name: The variable.
        default: The value if it is not set.
        least: The lowest allowed value.

    Returns:
        The number.

    Raises:
        ConfigurationError: For anything else, naming the variable.
    """
    return whole_number(os.environ, name, str(default), least)


def seconds(name: str, default: float) -> float:
    """The seconds, more than 0 and at most a year, that a variable of this process holds.

    Raises `ConfigurationError` for anything else.
    """
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MAX_SECONDS:
        raise ConfigurationError(f"{name}: must be a number of seconds, not {text[:_MAX_SHOWN]!r}")
    return value


def rendezvous_seconds() -> int:
    """Return how long ranks look for each other, in seconds."""
    return number("WORKER_RENDEZVOUS_SECONDS", 300, least=1)


def stall_seconds() -> int:
    """Return how many seconds a rank may take for a step, or for a batch of an evaluation."""
    return number("WORKER_STALL_SECONDS", 900, least=1)


def collective_seconds() -> int:
    """Return how many seconds a rank waits for others: longer than the watchdog allows a stall."""
    return number("WORKER_COLLECTIVE_SECONDS", 1200, least=1)


def grace_seconds() -> int:
    """Time between SIGTERM and SIGKILL at this place."""
    return number("WORKER_GRACE_SECONDS", 30, least=1)


def store_deadline() -> float:
    """Return how long a request to a store may take, with all its tries, in seconds."""
    return seconds("WORKER_STORE_DEADLINE_SECONDS", 60)


def metrics_port() -> int:
    """The port that the first rank of this node serves its metrics on."""
    port = number("WORKER_METRICS_PORT", 0)
    if port > LAST_PORT:
        raise ConfigurationError(f"WORKER_METRICS_PORT: must be at most {LAST_PORT}, not {port}")
    return port


VARIABLES = (
    *("WORKER_COLLECTIVE_SECONDS", "WORKER_GRACE_SECONDS", "WORKER_LOADER_THREADS"),
    *("WORKER_METRICS_PORT", "WORKER_METRICS_TEXTFILE", "WORKER_NODES", "WORKER_PUSHGATEWAY"),
    *("WORKER_READ_MEMORY_MIB", "WORKER_RENDEZVOUS_SECONDS", "WORKER_REVISION"),
    *("WORKER_SCRATCH", "WORKER_SCRATCH_GIB", "WORKER_STALL_SECONDS"),
    "WORKER_STORE_DEADLINE_SECONDS",
)
"""All variables of our own; docs/environment.md says what they mean."""


def unknown_variables() -> list[str]:
    """Return the variables that begin like ours and are none, each with the one that it resembles.

    Only those that resemble one: others may be somebody else's.
    """
    strange = [name for name in os.environ if name.startswith("WORKER_") and name not in VARIABLES]
    # Kubernetes sets such variables for a Service that is called `worker`.
    strange = [name for name in strange if not re.search("_SERVICE|_PORT_", name)]
    pairs = [
        (name, difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.85)) for name in strange
    ]
    return [f"{name} is not known; did you mean {near[0]}?" for name, near in pairs if near]


def check_environment() -> None:
    """Raise `ConfigurationError` for a setting that could not be read later."""
    for setting in (
        rendezvous_seconds,
        stall_seconds,
        collective_seconds,
        grace_seconds,
        store_deadline,
        metrics_port,
    ):
        setting()
