"""What runs by itself: the drain sensor and the recovery schedule."""
