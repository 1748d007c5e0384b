"""A pipeline's settings: the model, loading it, secrets, and the user's own functions."""
