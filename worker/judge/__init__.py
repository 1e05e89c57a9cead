"""Judgment of a model: figures with intervals, computed from integer counts."""
