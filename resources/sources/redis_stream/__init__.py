"""A stream of Redis as a message source, with a consumer group."""
