"""Where a message is, whatever has become of it."""
