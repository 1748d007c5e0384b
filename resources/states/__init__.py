"""State stores: Redis, or one SQLite file."""
