"""RabbitMQ as a message source, on pika."""
