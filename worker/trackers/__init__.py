"""Copies of a run's record for experiment trackers, made from the store alone."""
