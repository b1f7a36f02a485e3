"""The crash matrix: every fault, crashed at every step of its life, end to end in lab namespaces.

`python -m tests.crashes` runs all of it and prints its size, the failing cells with their stories, and how long healing
took.
"""
