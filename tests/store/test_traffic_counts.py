"""Requests to storage are counted."""

from tests.support.exporting import metrics_of
from worker.store import open_store
from worker.store.traffic_counts import listen


def test_requests_to_storage_are_counted_by_operation(bucket: str) -> None:
    metrics = metrics_of()
    listen(metrics)
    for store in (open_store(f"{bucket}/a/"),):
        store.put("x", b"12345")
        store.get("x")
        list(store.list())
        assert store.put_if_absent("y", b"123")
    found = {
        (sample.name, sample.labels["operation"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "operation" in sample.labels
    }
    for operation in ("put", "get", "list", "create"):
        assert found["worker_store_requests_total", operation] == 1
        assert found["worker_store_request_seconds_count", operation] == 1
    assert found["worker_store_bytes_total", "put"] == 5
    assert found["worker_store_bytes_total", "get"] == 5
    assert found["worker_store_bytes_total", "create"] == 3
