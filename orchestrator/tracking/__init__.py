"""MLflow: writer, reader, outbox, relay."""
