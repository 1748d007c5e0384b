"""Fixtures of all tests: the private servers, each started at its first use."""

pytest_plugins = ["tests.servers.queue_fixtures", "tests.servers.object_store_fixtures"]
