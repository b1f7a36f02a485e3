"""trogdor-bus: fault injection for Kafka clusters and anything else on Linux, driven over a message bus."""

__version__ = "0.1.0"
