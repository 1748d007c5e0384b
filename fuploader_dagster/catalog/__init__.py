"""The catalog: which archive holds the file of a given name."""
