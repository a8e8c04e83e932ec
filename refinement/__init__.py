"""Relevance feedback: simulated users, strategies, protocols, the one loop, and the wiring of an experiment."""
