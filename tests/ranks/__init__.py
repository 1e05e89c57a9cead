"""Tests of `worker.ranks`."""
