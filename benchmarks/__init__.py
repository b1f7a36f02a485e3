"""Measures trogdor-bus beside what the same work costs without it: `python -m benchmarks [NAME ...] [--quick]`."""
