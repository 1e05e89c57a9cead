"""Checkpoints, commits, attempts and results: what is durable."""
