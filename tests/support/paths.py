"""Where things are: this repository, and what the machine has beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
"""Photographs, weights and faults to reproduce; the tests that use them skip without it."""
