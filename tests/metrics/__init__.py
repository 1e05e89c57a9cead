"""Tests of `worker.metrics`."""
