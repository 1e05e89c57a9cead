"""Helpers of the tests: servers, engines, processes, and faults."""
