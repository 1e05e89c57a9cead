"""Tests of `worker.check`."""
