"""The version, in one place."""

__version__ = "1.0.0"

SPEC = 3  # of the numbers: it changes only when an output changes
