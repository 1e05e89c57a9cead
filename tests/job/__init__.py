"""Tests of `worker.job`."""
