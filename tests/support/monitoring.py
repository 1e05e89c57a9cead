"""A real Prometheus and a real Pushgateway, with the shipped rules at the pace of a test."""

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench.servers import binary, free_port, note_real, wait_for
from tests.support.paths import ROOT

MONITORING = ROOT / "k8s/monitoring"
STALLED_SECONDS = 8
_SECONDS = re.compile(r"> 900$", re.MULTILINE)


@dataclass(frozen=True)
class Prometheus:
    """Asked by its HTTP API."""

    address: str

    def query(self, expression: str, since: float | None = None) -> list[dict[str, Any]]:
        """The vector that an expression gives now, or `since` then; fails where it is not valid."""
        if since is None:
            answer = self._get("query", query=expression)
        else:
            span = {"start": str(since), "end": str(time.time()), "step": "2"}
            answer = self._get("query_range", query=expression, **span)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The value of the only series that an expression gives, if there is one."""
        found = self.query(expression)
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def tell(self) -> str:
        """All that is known, for whoever waited in vain."""
        return json.dumps(self.query('{__name__=~"worker_.+|ALERTS",le=""}'), indent=1)

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self._get("alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
        assert answer["status"] == "success", answer
        return answer


@contextlib.contextmanager
def start_pushgateway(folder: Path) -> Iterator[str]:
    """The address of a Pushgateway."""
    note_real("prometheus-pushgateway", "--version")
    address = f"127.0.0.1:{free_port()}"
    kept = f"--persistence.file={folder}/groups"  # not Debian's own, which outlives a test
    with _running(folder, "prometheus-pushgateway", f"--web.listen-address={address}", kept):
        wait_for(f"http://{address}/-/ready", folder / "prometheus-pushgateway.log")
        yield address


@contextlib.contextmanager
def start_prometheus(folder: Path, targets: Sequence[str], gateway: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `targets` as the shipped PodMonitor does, and the gateway."""
    note_real("prometheus", "--version")
    monitor = YAML(typ="safe", pure=True).load(MONITORING / "pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    rules = _SECONDS.sub(f"> {STALLED_SECONDS}", (MONITORING / "rules.yaml").read_text())
    assert rules.count(f"> {STALLED_SECONDS}") == 1
    (folder / "rules.yaml").write_text(rules.replace("for: 1m", "for: 0s"))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "worker",
                "honor_labels": endpoint["honorLabels"],
                "static_configs": [{"targets": list(targets)}],
                "metric_relabel_configs": endpoint["metricRelabelings"],
            },
            {
                "job_name": "pushgateway",
                "honor_labels": True,
                "static_configs": [{"targets": [gateway]}],
            },
        ],
    }
    YAML(typ="safe", pure=True).dump(config, folder / "prometheus.yml")
    address = f"127.0.0.1:{free_port()}"
    arguments = (
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address={address}",
    )
    with _running(folder, "prometheus", *arguments):
        wait_for(f"http://{address}/-/ready", folder / "prometheus.log")
        yield Prometheus(f"http://{address}")


@contextlib.contextmanager
def _running(folder: Path, program: str, *arguments: str) -> Iterator[None]:
    with (folder / f"{program}.log").open("w") as log:
        process = subprocess.Popen([binary(program), *arguments], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def promtool(*arguments: str | Path, text: str = "") -> str:
    """What promtool says; fails where it finds fault."""
    note_real("promtool", "--version")
    done = subprocess.run(
        [binary("promtool"), *map(str, arguments)], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dashboard_queries() -> dict[str, list[str]]:
    """The queries of every panel by its title, without Grafana's variables."""
    outcome = json.loads((MONITORING / "dashboard.json").read_text())
    variables = {"$job": ".+", "$run": ".+", "$__rate_interval": "10s", "$__range": "1h"}
    found: dict[str, list[str]] = {}
    for panel in outcome["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            found.setdefault(panel["title"], []).append(query)
    return found
