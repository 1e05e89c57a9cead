"""Tests of `worker.learn`."""
