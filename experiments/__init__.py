"""Experiments on the feedback loop: opened, run, compared."""
