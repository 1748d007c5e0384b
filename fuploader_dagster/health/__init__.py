"""What a person is told about a pipeline: the doctor and the alerts."""
