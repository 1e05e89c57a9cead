"""The preflight of `worker check`, one row per probe."""
