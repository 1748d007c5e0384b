"""From the queue to sealed slots: the supervisor, its workers and what they keep on disk."""
