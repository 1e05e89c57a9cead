"""The repository itself: rooms, reference pages."""
