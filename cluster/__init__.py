"""Embedding and captioning by many workers, on Ray: an extra, which nothing else imports."""
