"""The Dagster side: partitions, assets, checks and jobs. The sensors are in `sensors/`."""
