"""The feedback loop: users, strategies, protocols."""
