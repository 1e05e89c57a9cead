"""One case after another, in bounded time and memory."""

import logging
import resource
import signal
import traceback
import warnings
from collections import Counter
from random import Random
from typing import Any

import torch

from tests.fuzz.targets import TARGETS, Target, outcome_of

_CPU_SECONDS, _WALL_SECONDS = 10, 60
_CASE_BYTES = 1 << 30


class TooLong(BaseException):
    """A case that took more than its time."""


def run_case(target: Target, seed: int) -> tuple[str, str]:
    """The outcome of a case, and the traceback of what must not be."""

    def too_long(*_: Any) -> None:
        raise TooLong(f"more than {_CPU_SECONDS} s, or {_WALL_SECONDS} s of waiting")

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        case = target.make(Random(f"{target.name} {seed}"))
        signal.alarm(_WALL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
        outcome = outcome_of(target, case)
    except BaseException:
        return "FAULT", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > _CASE_BYTES:
        return "FAULT", f"took {grown >> 20} MiB"
    return outcome, ""


def settle() -> None:
    """Make this process ready to run cases."""
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")


def run_batch(work: tuple[str, int, int]) -> tuple[str, Counter[str], list[tuple[int, str]]]:
    """Run the cases of a target from a seed on; returns the outcomes, and the faults by seed."""
    name, first, count = work
    target = next(target for target in TARGETS if target.name == name)
    outcomes: Counter[str] = Counter()
    faults = []
    for seed in range(first, first + count):
        outcome, trace = run_case(target, seed)
        outcomes[outcome] += 1
        if trace:
            faults.append((seed, trace))
    return name, outcomes, faults
