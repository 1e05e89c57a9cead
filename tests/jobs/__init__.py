"""Whole jobs, as a user sees them."""
