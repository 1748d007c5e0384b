"""From a message to a named file: envelopes, poison messages, and the producer API."""
