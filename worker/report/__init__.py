"""What a run has left in its store, made readable; nothing here writes to a run."""
