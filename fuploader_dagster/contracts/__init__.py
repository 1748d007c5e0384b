"""What a backend promises: message sources, state stores, object stores, and their diagnosis."""
