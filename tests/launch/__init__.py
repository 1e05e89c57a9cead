"""Tests of `worker.launch`."""
