"""Settings of the place that a job runs at, from the environment."""

import os

from worker.errors import ConfigurationError

_LAST_PORT = 65535


def number(name: str, default: int, least: int = 0) -> int:
    """The whole number that a variable holds.

    Raises `ConfigurationError` for anything else, or for less than `least`.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ConfigurationError(f"{name}: must be a whole number from {least}, not {text!r}")
    return int(text)


def rendezvous_seconds() -> int:
    """How long ranks look for each other."""
    return number("WORKER_RENDEZVOUS_SECONDS", 300, least=1)


def stall_seconds() -> int:
    """How long a rank may take for a step, a batch of an evaluation or the first of them."""
    return number("WORKER_STALL_SECONDS", 900, least=1)


def collective_seconds() -> int:
    """How long a rank waits for the others; more than a stall, so that who stalls says so."""
    return number("WORKER_COLLECTIVE_SECONDS", 1200, least=1)


def grace_seconds() -> int:
    """Time between SIGTERM and SIGKILL at this place."""
    return number("WORKER_GRACE_SECONDS", 30, least=1)


def metrics_port() -> int:
    """The port that the first rank of this node serves its metrics on."""
    port = number("WORKER_METRICS_PORT", 0)
    if port > _LAST_PORT:
        raise ConfigurationError(f"WORKER_METRICS_PORT: must be at most {_LAST_PORT}, not {port}")
    return port


def check_environment() -> None:
    """Raise `ConfigurationError` for a setting that could not be read later."""
    for setting in (rendezvous_seconds, stall_seconds, collective_seconds, grace_seconds):
        setting()
