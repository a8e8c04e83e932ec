"""Relevance feedback: users, strategies, protocols, the one loop, and the wiring of an experiment."""
