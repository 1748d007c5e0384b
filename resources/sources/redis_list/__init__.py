"""A list of Redis as a message source."""
