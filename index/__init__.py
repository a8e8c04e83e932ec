"""Pictures to vectors, and vectors to rankings."""
