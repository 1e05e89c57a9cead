"""Backbone, head, weights and graded learning-rate groups."""
