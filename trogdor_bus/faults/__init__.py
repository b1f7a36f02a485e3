"""Every fault that ships with trogdor-bus, one file per family; the registry finds them by itself."""
