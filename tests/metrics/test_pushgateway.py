"""What is pushed, and by whom."""

import base64
import math
import os
import re
import time

import pytest

from tests.support.exporting import RUN, Pushes, metrics_of, running
from worker.errors import ExitCode
from worker.metrics.exporters import announce
from worker.metrics.pushgateway import Gateway
from worker.metrics.shared_outcome import SharedOutcome

GROUP = f"/metrics/job/ants/run@base64/{base64.urlsafe_b64encode(RUN.run.encode()).decode()}"


def test_the_outcome_takes_the_place_of_what_was_pushed(gateway: Pushes) -> None:
    metrics = metrics_of()
    metrics.attempt().set(2)
    metrics.rate("head").set(1e-3)
    metrics.step().set(7)
    with running(metrics) as outcome:
        while len(gateway) < 3:
            time.sleep(0.01)
    announce(RUN, ExitCode.STOPPED, outcome, lambda: math.inf)
    *forgotten, (_, path, live, _), (method, same, left, _) = gateway
    # What the last attempt has left goes first: it is another's exit code.
    assert [push[:2] for push in forgotten] == [
        ("DELETE", GROUP),
        ("DELETE", f"{GROUP}/superseded/true"),
    ]
    # A PUT replaces the group as a whole, so nothing of a run that ended is left to go stale.
    assert (method, path, same) == ("PUT", GROUP, GROUP)
    assert f'worker_learning_rate{{group="head",job="ants",run="{RUN.run}"}} 0.001' in live
    assert "worker_learning_rate" not in left
    assert f'worker_step{{job="ants",run="{RUN.run}"}} 7.0' in left
    assert f'worker_exit_code{{job="ants",run="{RUN.run}"}} 75.0' in left
    assert 'reason="stopped"' in left
    assert "_created" not in live + left
    # Told with the same words, as node exporter drops a metric that has two.
    helps = [set(re.findall(r"# HELP (worker_step .*)", text)) for text in (live, left)]
    assert helps[0] == helps[1]


def test_a_start_that_was_refused_takes_nothing_away(gateway: Pushes) -> None:
    announce(RUN, ExitCode.CONFIGURATION, SharedOutcome(), lambda: math.inf)
    ((method, path, body, _),) = gateway
    assert (method, path) == ("POST", GROUP)
    assert "worker_step" not in body


def test_who_was_superseded_leaves_the_group_to_the_newer_attempt(gateway: Pushes) -> None:
    announce(RUN, ExitCode.SUPERSEDED, SharedOutcome(), lambda: math.inf)
    assert [path for _, path, _, _ in gateway] == [f"{GROUP}/superseded/true"]


def test_a_login_of_the_gateway_is_sent_and_not_shown(
    gateway: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ["WORKER_PUSHGATEWAY"].replace("//", "//me:p%40ss@")
    monkeypatch.setenv("WORKER_PUSHGATEWAY", address)
    announce(RUN, ExitCode.DONE, SharedOutcome(), lambda: math.inf)
    assert gateway[0][3] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    found = Gateway.from_environment()
    assert found
    assert "@" not in found.address
