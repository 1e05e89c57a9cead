"""Where jobs run: containers, schedulers, monitoring."""
