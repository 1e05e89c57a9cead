"""Tests of `worker.checkpoint`."""
