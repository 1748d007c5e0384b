"""What backends promise: message sources, state stores, object stores, and their diagnosis."""
