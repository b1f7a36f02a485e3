"""A small cluster on one machine, made of network namespaces."""
