"""From the message queue to verified archives in object storage, as a Dagster project."""
