"""A run's own records: history, sample ledger, environment, progress."""
