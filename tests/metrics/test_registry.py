"""Unknown values are not shown."""

from tests.support.exporting import metrics_of


def test_nothing_is_shown_that_is_not_known() -> None:
    metrics = metrics_of()
    shown = {family.name for family in metrics.registry.collect() if family.samples}
    assert "worker_accuracy_ratio" not in shown
    assert "worker_last_commit_timestamp_seconds" not in shown
    assert "worker_bad_samples" not in shown
    assert {"worker_samples", "worker_start_timestamp_seconds"} <= shown
