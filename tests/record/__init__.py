"""Tests of `worker.record`."""
