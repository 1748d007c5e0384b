"""Topics of Apache Kafka as a message source, with a consumer group."""
