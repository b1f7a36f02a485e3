"""Platforms by name: `basic` is Linux; others come by the entry point group "trogdor_bus.platforms"."""
