"""The agent: one process per node, which performs faults on the machine under test and takes them back."""
