"""The Kafka cluster under test: what it is now, and the few things that are changed in it."""
