"""Sweeps: trials as pure functions of their number, shared out by way of the store."""
