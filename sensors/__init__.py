"""What runs by itself: draining, recovery, retention, and telling a person of trouble."""
