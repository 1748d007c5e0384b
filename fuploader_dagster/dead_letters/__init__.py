"""Dead letters: what could not become a file, or could not be processed, kept whole."""
