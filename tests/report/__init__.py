"""Tests of `worker.report`."""
