"""A message queue in a local SQLite file, for one machine and for trying things out."""
