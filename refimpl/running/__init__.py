"""Threads, executors and work units, and the facts of a run."""
