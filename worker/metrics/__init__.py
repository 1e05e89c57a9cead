"""Prometheus metrics and the ways out of the process."""
