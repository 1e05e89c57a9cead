"""The page of metrics has every metric."""

from tests.support.paths import ROOT
from worker.metrics.docs_table import describe_metrics


def test_the_documentation_lists_all_metrics() -> None:
    page = ROOT / "docs/metrics.md"
    assert describe_metrics() in page.read_text()
