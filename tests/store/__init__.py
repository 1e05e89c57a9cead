"""Tests of `worker.store`."""
