"""Experiments: a liveness stream, faults at intervals, and a verdict that can be trusted."""
