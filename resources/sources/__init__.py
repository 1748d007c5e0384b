"""Message sources, one folder per backend."""
