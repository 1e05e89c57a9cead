"""Tests of `worker.manifest`."""
