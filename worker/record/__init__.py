"""What a run writes about itself: history, sample ledger, environment, progress."""
