"""Readers of what a run has left in its store: status, pages, comparisons."""
