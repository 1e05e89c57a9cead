"""Tests of `worker.cli`."""
