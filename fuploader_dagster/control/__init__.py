"""What people want a pipeline to do: pauses, on all of its nodes."""
