"""From image files to an index: decode, encode, write."""
