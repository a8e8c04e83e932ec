"""Text out of models: precision, loading, batches, prompts, parsing, the caption store."""
