"""Durable state: immutable parts, commits, attempts."""
