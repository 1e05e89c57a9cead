"""Tests of `worker.train`."""
