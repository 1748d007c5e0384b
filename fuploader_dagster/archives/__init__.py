"""Archives of all formats: writing, reading, checking and restoring. Knows nothing of slots."""
