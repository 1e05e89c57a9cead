"""Metrics seen from far away: a real Prometheus and Pushgateway, the shipped rules and dashboard."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from ruamel.yaml import YAML

from bench.servers import two_free_ports, wait_until
from tests.support.monitoring import (
    MONITORING,
    Prometheus,
    dashboard_queries,
    promtool,
    start_prometheus,
    start_pushgateway,
)
from tests.support.processes import Start
from worker.checkpoint.commit import list_commits
from worker.metrics.run_outcome import Outcome
from worker.store import open_store

pytestmark = pytest.mark.e2e

# On a machine without a GPU there is nothing to show in them, and no fault either.
EMPTY = {"GPU busy", "GPU memory, peak", "Retries and failures", "Bad samples", "Exit code"}


def test_the_rules_are_sound_and_fire_as_told() -> None:
    assert "rules found" in promtool("check", "rules", MONITORING / "rules.yaml")
    tests = Path(__file__).parent / "rules_test.yaml"
    promtool("test", "rules", tests)
    tested = tests.read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n        exp_alerts" in tested, rule["alert"]


def test_the_operator_gets_the_same_rules() -> None:
    custom = YAML(typ="safe", pure=True).load(MONITORING / "prometheus-rule.yaml")
    plain = YAML(typ="safe", pure=True).load(MONITORING / "rules.yaml")
    assert custom["spec"] == plain


def test_panels_show_the_newest_pod_of_a_job(tmp_path: Path) -> None:
    """A pod that comes again has another address, and what the one before said last is kept."""
    values = {
        "worker_export_timestamp_seconds": ("0+60x10 _x50", "_x30 1800+60x30"),
        "worker_last_step_timestamp_seconds": ("0+60x10 _x50", "_x30 1800+60x30"),
        "worker_images_per_second": ("900x10 _x50", "_x30 500x30"),
        "worker_expected_end_timestamp_seconds": ("9000x10 _x50", "_x30 4000x30"),
        "worker_end_timestamp_seconds": ("_x10 600 _x49", "_x60 3600"),
        "worker_exit_code": ("_x10 75 _x49", "_x60 0"),
    }
    series = [
        {"series": f'{name}{{job="ants",run="a",instance="{pod}"}}', "values": shape}
        for name, shapes in values.items()
        for pod, shape in enumerate(shapes)
    ]
    queries = dashboard_queries()
    expected = {"Images per second": 500, "Ends": 4_000_000, "Exit code": 0, "Up": 1}
    exprs = [
        {
            "expr": queries[title][0],
            "eval_time": "60m",
            "exp_samples": [{"labels": '{job="ants", run="a"}', "value": value}],
        }
        for title, value in expected.items()
    ]
    one = {"interval": "1m", "input_series": series, "promql_expr_test": exprs}
    path = tmp_path / "panels.yaml"
    YAML(typ="safe", pure=True).dump({"tests": [one]}, path)
    promtool("test", "rules", path)


def test_a_worker_that_hangs_is_not_up_because_a_gateway_keeps_its_metrics(tmp_path: Path) -> None:
    labels = '{job="ants",run="a"}'
    series = [
        {"series": f"worker_step{labels}", "values": "7x20"},
        {"series": f"worker_export_timestamp_seconds{labels}", "values": "0+60x10 600x10"},
    ]
    (query,) = dashboard_queries()["Up"]
    exprs = [
        {
            "expr": query,
            "eval_time": minute,
            "exp_samples": [{"labels": '{job="ants", run="a"}', "value": value}],
        }
        for minute, value in (("10m", 1), ("11m", 1), ("12m", 0), ("20m", 0))
    ]
    one = {"interval": "1m", "input_series": series, "promql_expr_test": exprs}
    path = tmp_path / "up.yaml"
    YAML(typ="safe", pure=True).dump({"tests": [one]}, path)
    promtool("test", "rules", path)


def test_a_run_is_seen_from_far_away(
    start: Start,
    job: dict[str, Any],
    write: Callable[[dict[str, Any]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = two_free_ports()
    job["train"]["epochs"] = 400
    with (
        start_pushgateway(tmp_path) as gateway,
        start_prometheus(
            tmp_path, [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"], gateway
        ) as prometheus,
    ):
        monkeypatch.setenv("WORKER_PUSHGATEWAY", f"http://{gateway}")
        monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
        killed = start("train", "--nproc", "2", write(job))
        wait_until(lambda: (prometheus.value("worker_epoch") or 0) > 20, 60, prometheus.tell)
        wait_until(
            lambda: not unanswered(prometheus) - EMPTY, 30, lambda: str(unanswered(prometheus))
        )
        for rule in rules():
            prometheus.query(rule["expr"])
        assert prometheus.query("job_run:worker_last_step_timestamp_seconds:max")
        for own in (port, port + 1):
            promtool("check", "metrics", text=_read(f"127.0.0.1:{own}"))
        seen = {series["metric"]["rank"] for series in prometheus.query("worker_step_seconds_sum")}
        assert seen == {"0", "1"}
        # What has a port is not pushed, too: every series would be there twice.
        assert "worker_loss" not in _read(gateway)

        # A worker that hangs: every panel still says since when, and whether it is up.
        assert prometheus.value(up()) == 1
        parent = killed._process.pid or 0
        pids = [parent, *children_of(parent)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: prometheus.value(up()) == 0, 30, prometheus.tell)
        assert not unanswered(prometheus, since=time.time() - 60) - EMPTY
        (since,) = dashboard_queries()["Since the last step"]
        wait_until(lambda: 3 < (prometheus.value(since) or 0) < 60, 30, prometheus.tell)
        assert not {"Ends", "Done", "Runs", "Images per second"} & unanswered(prometheus)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: prometheus.value(up()) == 1, 30, prometheus.tell)

        killed.send(signal.SIGKILL)  # its ranks die with it
        killed.wait()
        wait_until(lambda: "WorkerStalled" in prometheus.firing(), 60, prometheus.tell)

        # It goes on; a stop is an end like another, which is scraped before the port closes.
        stopped = start("train", "--nproc", "2", write(job))
        wait_until(lambda: prometheus.value("worker_attempt") == 2, 60, prometheus.tell)
        wait_until(lambda: "WorkerStalled" not in prometheus.firing(), 60, prometheus.tell)
        stopped.send(signal.SIGTERM)
        assert stopped.wait().code == 75
        last = 'last_over_time(worker_exit_code{run=~".+/run/"}[1m])'
        wait_until(lambda: prometheus.value(f"max({last})") == 75, 5, prometheus.tell)

        # Without a port it is pushed while it runs, and leaves its outcome and nothing else.
        monkeypatch.delenv("WORKER_METRICS_PORT")
        job["train"]["epochs"] = list_commits(open_store(job["output"]))[0].step // 5 + 2
        done = start("train", write(job))
        wait_until(lambda: "worker_samples_total" in _read(gateway), 60, prometheus.tell)
        assert done.wait().code == 0
        left = _read(gateway)
        assert "worker_samples_total" not in left
        assert "worker_step_seconds" not in left
        assert 'reason="done"' in left
        promtool("check", "metrics", text=_outcome())
        wait_until(lambda: prometheus.value("worker_exit_code") == 0, 20, prometheus.tell)
        assert prometheus.value("worker_last_success_timestamp_seconds")
        assert prometheus.value("time() - push_time_seconds") is not None
        assert not prometheus.firing() - {"WorkerRestartLoop"}


def rules() -> list[dict[str, Any]]:
    (group,) = YAML(typ="safe", pure=True).load(MONITORING / "rules.yaml")["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def unanswered(prometheus: Prometheus, since: float | None = None) -> set[str]:
    """The panels of which a query gives nothing, now or `since`; fails where one is not valid."""
    return {
        title
        for title, queries in dashboard_queries().items()
        if not all(prometheus.query(query, since) for query in queries)
    }


def up() -> str:
    """The query that says whether a job answers."""
    (query,) = dashboard_queries()["Up"]
    return query


def children_of(pid: int) -> list[int]:
    """The processes below one, and theirs."""
    own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, own) for found in (child, *children_of(child))]


def _read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


def _outcome() -> str:
    return generate_latest(Outcome("ants", "s3://bucket/run/").tell(0, {"step": 3.0})).decode()
