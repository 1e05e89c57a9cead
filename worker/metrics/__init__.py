"""Prometheus metrics and their exporters."""
