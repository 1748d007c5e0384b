"""Archives: writing, reading, checking and restoring `.tar.zst` files. Knows nothing of slots."""
