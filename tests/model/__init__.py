"""Tests of `worker.model`."""
